"""Write an adapter directory, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.adapter_files import CARD, CONFIG, SIDECAR, WEIGHTS, write_json, write_tensors
from peftcli.adapters.format import FORMAT_VERSION, OWN_LAYOUT, OWN_TYPE, AdapterMeta, recorded_params
from peftcli.adapters.library import RunFiles
from peftcli.adapters.library_table import LIBRARIES
from peftcli.adapters.model_card import adapter_card
from peftcli.adapters.sidecar import sidecar_of
from peftcli.atomic import new_directory
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.deliverables.write_beside import write_beside_adapter
from peftcli.recipe.method_params import MethodParams
from peftcli.write_errors import OTHER_RUN


def save_adapter(
    directory: Path,
    *,
    attachment_state: Mapping[str, Tensor],
    params: MethodParams,
    meta: AdapterMeta,
    metrics: Mapping[str, str] | None = None,
    leaving: LeavingModel | None = None,
) -> None:
    """Write adapter_config.json, adapter_model.safetensors, peftcli.json, the model card, and what the base lacks.

    Uses the layout of the first library with a `run_layout` that can hold this adapter (HF peft), else our own.

    Args:
        directory: what is there is replaced, after everything is written and synced.
        attachment_state: `Attachment.state_dict()`; on any device, copied.
        params: the method's hyper-parameters.
        meta: `format.describe(...)`.
        metrics: final evaluation numbers for the model card, as people read them.
        leaving: says which tokenizer and chat template belong beside the adapter; None where they are not known.
    """
    params = recorded_params(params, meta.token_rows)
    layout, files = _library_files(params, meta, attachment_state)
    with new_directory(Path(directory), instead=OTHER_RUN) as partial:
        write_tensors(partial / WEIGHTS, files.tensors if files else attachment_state)
        write_json(partial / CONFIG, files.config if files else own_config(params))
        card = adapter_card(params, meta, use=files.use if files else None, metrics=metrics)
        (partial / CARD).write_text(card, encoding="utf-8")
        if leaving is not None:
            write_beside_adapter(partial, leaving)
        write_json(partial / SIDECAR, sidecar_of(partial, params, meta, layout))


def _library_files(params: MethodParams, meta: AdapterMeta, state: Mapping[str, Tensor]) -> tuple[str, RunFiles | None]:
    """Return the layout's name and the library's files; no files for our own layout."""
    for library in LIBRARIES.values():
        if library.run_layout is not None:
            files = library.run_layout.files(params, meta, state)
            if files is not None:
                return library.run_layout.name, files
    return OWN_LAYOUT, None


def own_config(params: MethodParams) -> dict[str, Any]:
    """Return the adapter_config.json of the layout that only this project reads; other loaders refuse its type."""
    return {
        "peft_type": OWN_TYPE,
        "method": params.name,
        "format_version": FORMAT_VERSION,
        "read_with": "the peft command of peftcli; the parameters are in peftcli.json",
    }
