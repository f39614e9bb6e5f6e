"""Read an adapter directory: ours, or one that HF peft wrote. Strict: nothing missing, nothing left over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peftcli.adapters.format import (
    CONFIG,
    FORMAT_VERSION,
    OWN_TYPE,
    SIDECAR,
    WEIGHTS,
    AdapterMeta,
    read_json,
)
from peftcli.adapters.hf.hf_peft import FORMATS, import_hf
from peftcli.errors import Problem, UserError
from peftcli.protocol.registry import MethodRegistry, registry
from peftcli.recipe.aliases import upgrades
from peftcli.recipe.params import MethodParams


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read from disk.

    Args:
        params: the method's hyper-parameters.
        state: what `Attachment.load_state_dict` takes, on the CPU.
        meta: how it was made, and for which base.
        notes: what was left out or assumed while reading another library's files.
    """

    params: MethodParams
    state: dict[str, Tensor]
    meta: AdapterMeta
    notes: tuple[str, ...] = ()


def load_adapter(directory: Path | str, *, methods: MethodRegistry = registry) -> SavedAdapter:
    """Read an adapter.

    Args:
        directory: a run's `adapter/`, an exported one, or one that HF peft saved.
        methods: where the method's parameters are found.

    Raises:
        UserError: a file is missing, damaged, of a later version, or of a kind that cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no adapter directory {directory}")
    if not (directory / SIDECAR).is_file():
        config = read_json(directory / CONFIG)
        if config.get("peft_type") == OWN_TYPE:
            raise UserError(f"{directory / SIDECAR} is missing: the adapter's parameters are in it")
        params, state, meta, notes = import_hf(config, read_tensors(directory / WEIGHTS), directory)
        return SavedAdapter(params, state, meta, notes)
    sidecar = read_json(directory / SIDECAR)
    params, meta = _records(sidecar, directory / SIDECAR, methods)
    tensors = read_tensors(directory / WEIGHTS)
    if sidecar.get("layout") != "hf_peft":
        return SavedAdapter(params, tensors, meta)
    theirs = FORMATS.get(params.name)
    if theirs is None:
        raise UserError(f"{directory}: {params.name} was saved in HF peft's layout, which this version does not read")
    config = read_json(directory / CONFIG)
    return SavedAdapter(params, theirs.from_file(tensors, params, meta, config), meta)


def _records(sidecar: Mapping[str, Any], path: Path, methods: MethodRegistry) -> tuple[MethodParams, AdapterMeta]:
    version = sidecar.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is of format version {version!r}, this peftcli reads {FORMAT_VERSION}",
            suggestion=f"install the peftcli that wrote it: {sidecar.get('peftcli_version', 'unknown')}",
        )
    method = sidecar.get("method")
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        raise UserError(f"{path} names no method")
    record = {"method": method}
    _, gone = upgrades.upgrade_(record, upgrades.CHANGES)
    if gone:
        raise UserError([Problem(f"{path}: {one.message}", suggestion=one.remedy) for one in gone])
    try:
        # as JSON: strict parameters then take lists for tuples
        params = methods.info(method["name"]).params.model_validate_json(json.dumps(record["method"]))
        return params, AdapterMeta.from_dict(sidecar["meta"])
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise UserError(f"{path}: the parameters of {method['name']} are not valid: {found}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is missing (a pickled one is never read) or damaged.
    """
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin")
        if not pickled.is_file():
            raise UserError(f"{path} cannot be read: it is missing", suggestion="copy it back, or train again")
        raise UserError(
            f"{path} is missing, and {pickled.name} is a pickle, which can run code",
            suggestion="save the adapter again with safe_serialization=True",
        )
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}", suggestion="copy the file again, or train again") from None
