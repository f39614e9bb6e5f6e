"""Weight files that are no weights, and weights that are no numbers: said in words before they are used."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from peftcli.distributed.processes import World
from peftcli.distributed.whole_tensors import own_part
from peftcli.errors import Problem, UserError
from peftcli.layers.quantised.quantised_weights import has_own_dequantize
from peftcli.layers.site import base_parameters
from peftcli.models.load.model_files import ModelSource
from peftcli.models.weights.tensor_header import read_header
from peftcli.models.weights.weight_index import weight_files
from peftcli.shown_text import some_of

_KEY = "model.name_or_path"
_AGAIN = "copy or download it again"
_LFS = b"version https://git-lfs"
_SHOWN = 4
_ADAPTER = "adapter_config.json"
_STARTS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (_LFS,),
        "is a pointer of git-lfs, not the file itself",
        "run `git lfs install && git lfs pull` in its directory, or download it from the hub",
    ),
    (
        (b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--"),
        "is a web page, not weights: the download gave an answer in place of the file",
        "download it again; a gated model needs `hf auth login`",
    ),
    (
        (b"PK\x03\x04", b"\x80\x02", b"\x80\x04"),
        "is a pickle or archive under another name",
        "convert it to safetensors",
    ),
    ((b"GGUF",), "is a GGUF file under another name", "name it .gguf"),
)


def wrong_start(file: Path) -> tuple[str, str] | None:
    """Return what a file is by its first bytes, and what to do, if it is no weights at all; None otherwise."""
    with file.open("rb") as stream:
        first = stream.read(256)
    if first[8:9] == b"{":  # the header of safetensors, whatever its length looks like
        return None
    if not first.strip(b"\0"):
        return ("is empty: no complete safetensors file" if not first else "begins with zero bytes only"), _AGAIN
    text = first.lstrip().lower()
    for starts, what, remedy in _STARTS:
        if first.startswith(starts) or text.startswith(starts):
            return (what, remedy) if file.suffix != ".gguf" or starts != (b"GGUF",) else None
    return None


def check_weight_files(source: ModelSource) -> None:
    """Look at the first bytes, the header and the size of a local model's weight files; their values are not read.

    Raises:
        UserError: names each file that holds no weights or not all of them, and what to do.
    """
    if source.path is None:
        return
    directory = source.kind == "directory"
    named = weight_files(source.path) if directory else [source.path]
    files = [file for file in named if file.is_file()]
    # a directory with an index alone serves what needs no weights; one with a part of them is half copied
    lacks = [file for file in named if file not in files] if files else []
    problems = [Problem(f"{file} is missing, and the index names it", key=_KEY, suggestion=_AGAIN) for file in lacks]
    if directory and (source.path / _ADAPTER).is_file() and find_spec("peft") is not None:
        reason = f"{source.path} holds a model and an adapter, and transformers would load both"
        remedy = f"move {_ADAPTER} and its weights into a directory of their own; method.init_from starts from them"
        problems.append(Problem(reason, key=_KEY, suggestion=remedy))
    for file in files:
        found = wrong_start(file)
        if found is None and file.suffix == ".gguf":
            with file.open("rb") as stream:
                found = None if stream.read(4) == b"GGUF" else ("is no GGUF file", _AGAIN)
        if found is None and directory:
            try:
                read_header(file)
            except ValueError as error:
                found = f"is no complete safetensors file ({error})", _AGAIN
        if found is not None:
            problems.append(Problem(f"{file} {found[0]}", key=_KEY, suggestion=found[1]))
    if problems:
        raise UserError(problems)


def refuse_pointers(directory: Path, patterns: tuple[str, ...]) -> None:
    """Refuse files of a tokenizer that are pointers of git-lfs.

    Raises:
        UserError: names each of them.
    """
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    found = [(file, wrong_start(file)) for file in files]
    lfs = [
        Problem(f"{file} {what[0]}", key=_KEY, suggestion=what[1])
        for file, what in found
        if what and "git-lfs" in what[0]
    ]
    if lfs:
        raise UserError(lfs)


def refuse_broken_numbers(model: nn.Module, name: str, world: World | None = None) -> None:
    """Refuse weights with NaN or infinity: every loss and every output would be NaN.

    Without a copy: the least and the greatest number are not finite if one of them is not. (A sum in float32 copies
    smaller types.) Quantised weights are passed over.

    Args:
        model: with its values loaded.
        name: of the base, for the message.
        world: looks at the shares of all processes, each at its own; every process must call this.

    Raises:
        UserError: names the tensors; in every process of `world`.
    """
    own = ((path, own_part(tensor.detach())) for path, tensor in base_parameters(model).items())
    ends = [
        (path, tensor, torch.stack([tensor.amin(), tensor.amax()]))
        for path, tensor in own
        if tensor.is_floating_point()
        and tensor.device.type != "meta"
        and tensor.dtype.itemsize > 1
        and tensor.numel()
        and not has_own_dequantize(tensor)
    ]
    found = {path: bool(tensor.isnan().any()) for path, tensor, both in ends if not bool(both.isfinite().all())}
    shares = [found] if world is None else world.gather(found)
    broken = [
        (path, any(share.get(path, False) for share in shares))
        for path in base_parameters(model)
        if any(path in share for share in shares)
    ]
    if not broken:
        return
    shown = some_of([f"{path} ({'NaN' if nan else 'infinity'})" for path, nan in broken], _SHOWN)
    raise UserError(
        Problem(
            f"the weights of {name!r} are not all numbers: {shown}",
            key=_KEY,
            suggestion="download it again, or take another checkpoint: this one was damaged, or saved after its "
            "training had diverged",
        )
    )
