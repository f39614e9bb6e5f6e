"""Read an adapter directory: ours, or one of a library that needs no base model. Nothing may be missing or extra."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftcli.adapters.adapter_files import CONFIG, SIDECAR, WEIGHTS, read_json, read_tensors
from peftcli.adapters.format import FORMAT_VERSION, OWN_TYPE, AdapterMeta, SavedAdapter
from peftcli.adapters.label_names import with_label_names
from peftcli.adapters.library_table import LIBRARIES, library_of
from peftcli.errors import Problem, UserError
from peftcli.protocol.registry import MethodRegistry, registry
from peftcli.recipe.aliases import renamed_keys
from peftcli.recipe.method_params import MethodParams


def load_adapter(directory: Path | str, *, methods: MethodRegistry = registry) -> SavedAdapter:
    """Read an adapter.

    Args:
        directory: a run's `adapter/`, an exported one, or one that another library saved.
        methods: where the method's parameters are found.

    Raises:
        UserError: a file is missing, damaged, of a later version, or of a kind that cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no adapter directory {directory}")
    if not (directory / SIDECAR).is_file():
        config = directory / CONFIG
        if config.is_file() and read_json(config).get("peft_type") == OWN_TYPE:
            raise UserError(f"{directory / SIDECAR} is missing: the adapter's parameters are in it")
        return with_label_names(library_of(directory).read(directory, None), directory)
    sidecar = read_json(directory / SIDECAR)
    params, meta = _records(sidecar, directory / SIDECAR, methods)
    tensors = read_tensors(directory / WEIGHTS)
    layouts = {library.run_layout: library for library in LIBRARIES.values() if library.run_layout is not None}
    library = layouts.get(str(sidecar.get("layout")))
    state = tensors if library is None else library.run_state(directory, tensors, params, meta)
    return SavedAdapter(params, state, meta)


def run_adapter(run: Path) -> Path:
    """Return the adapter directory of a run.

    Raises:
        UserError: there is none yet.
    """
    directory = run / "adapter"
    if not directory.is_dir():
        raise UserError(
            f"{run} holds no adapter yet",
            suggestion="finish it with `peft train RECIPE --resume`, or use --checkpoint last",
        )
    return directory


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
    _, gone = renamed_keys.upgrade_(record, renamed_keys.CHANGES)
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
