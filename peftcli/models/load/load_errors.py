"""Turn what transformers, the hub client and safetensors raise into messages that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from peftcli.distributed.memory_errors import is_out_of_memory
from peftcli.errors import Problem, UserError
from peftcli.models.load.model_files import ModelSource, hub_is_reachable, is_offline, local_near_misses
from peftcli.models.own_code import OPTION, own_code
from peftcli.suggestions import did_you_mean

if TYPE_CHECKING:
    from peftcli.recipe.schema import ModelSpec

_KEY = "model.name_or_path"


@contextmanager
def explain_load_errors(
    source: ModelSource, spec: ModelSpec, shape: Callable[[], object] | None = None
) -> Iterator[None]:
    """Raise a `UserError` for every failure to load; only libraries' code belongs into the block.

    Args:
        source: where the files are.
        spec: of the recipe.
        shape: builds the model without weights, and says which key of its config is to blame if that fails, too.

    A failed allocation passes through: the caller says what to do.
    """
    _refuse_pickles(source)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _explained(error, source, spec, shape) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what Rust code raises; it is no Exception
            raise
        raise UserError(_problem(RuntimeError(str(error)), source, spec)) from error


def _explained(error: Exception, source: ModelSource, spec: ModelSpec, shape: Callable[[], object] | None) -> UserError:
    """Return the user's error for a library's; `shape` raises one of its own."""
    if isinstance(error, ImportError):  # a missing package: flash-attn, gguf, sentencepiece, a remote model's own
        return UserError(Problem(_first_lines(error), key="model", suggestion="install the package it names"))
    if shape is not None:  # damaged files make libraries raise errors of every kind
        shape()
    return UserError(_problem(error, source, spec))


def _refuse_pickles(source: ModelSource) -> None:
    """Refuse a directory whose weights are only in pickle files; a directory without weights is not refused here."""
    if source.kind != "directory" or source.path is None or any(source.path.glob("*.safetensors")):
        return
    pickles = sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in source.path.glob(pattern)
    )
    pickles = [name for name in pickles if name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
    if pickles:
        raise UserError(
            Problem(
                f"{source.name!r} holds its weights only as pickles, which can run code: {', '.join(pickles[:3])}",
                key=_KEY,
                suggestion="convert it once where you trust it: AutoModel.from_pretrained(...).save_pretrained(DIR)",
            )
        )


def _problem(error: Exception, source: ModelSource, spec: ModelSpec) -> Problem:
    text = _first_lines(error)
    lower = str(error).lower()
    if "trust_remote_code" in lower:
        return Problem(
            f"{source.name!r} comes with Python code of its own: {own_code(spec) or 'see its config.json'}",
            key="model.trust_remote_code",
            suggestion=f"read that code; {OPTION}, or model.trust_remote_code: true in a recipe of yours, runs it",
        )
    if source.kind == "hub":
        return _hub_problem(text, lower, source, spec)
    if "does not recognize this architecture" in lower or "unrecognized model" in lower or "model_type" in lower:
        return Problem(
            f"{source.name!r}: transformers does not know this model type: {text}",
            key=_KEY,
            suggestion="check model_type in its config.json, or upgrade transformers",
        )
    if "valid json" in lower or "jsondecode" in type(error).__name__.lower():
        return Problem(f"{source.name!r}: its config.json is not valid JSON", key=_KEY, suggestion=text)
    if "no file named" in lower or "does not appear to have a file" in lower:
        return Problem(
            f"{source.name!r} has no weights in safetensors format",
            key=_KEY,
            suggestion="a config.json alone serves `peft count-params` and `peft validate`, not training",
        )
    return Problem(f"{source.name!r} cannot be loaded: {text}", key=_KEY, suggestion=type(error).__name__)


def _hub_problem(text: str, lower: str, source: ModelSource, spec: ModelSpec) -> Problem:
    near = local_near_misses(source.name)
    local = f"there is no directory {source.name!r} here" + (f"; {did_you_mean([repr(near)])}" if near else "")
    if is_offline():
        return Problem(
            f"{source.name!r} is not in the local cache, and HF_HUB_OFFLINE is set",
            key=_KEY,
            suggestion=f"unset HF_HUB_OFFLINE, or give a directory or package:NAME/PATH ({local})",
        )
    if not hub_is_reachable():
        return Problem(
            f"{source.name!r} is not in the local cache, and the Hugging Face hub cannot be reached",
            key=_KEY,
            suggestion=f"connect to the network, or give a directory or package:NAME/PATH ({local})",
        )
    if "gated" in lower or "401" in lower or "403" in lower or "not a valid model identifier" in lower:
        return Problem(
            f"the hub has no model {source.name!r} that you may read",
            key=_KEY,
            suggestion=f"check the spelling, or log in with `hf auth login` for a gated or private one ({local})",
        )
    if "revision" in lower or "not a valid git identifier" in lower:
        return Problem(f"{source.name!r} has no revision {spec.revision!r}", key="model.revision", suggestion=text)
    if "no file named" in lower or "does not appear to have a file" in lower:
        return Problem(
            f"{source.name!r} has no weights in safetensors format",
            key=_KEY,
            suggestion="pickled weights are not read: they can run code; look for a safetensors revision of it",
        )
    return Problem(f"{source.name!r} cannot be loaded from the hub: {text}", key=_KEY, suggestion=local)


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400] or type(error).__name__
