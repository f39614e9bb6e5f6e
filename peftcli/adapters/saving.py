"""Write an adapter directory, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from peftcli import __version__
from peftcli.adapters.format import CARD, CONFIG, FORMAT_VERSION, OWN_TYPE, SIDECAR, WEIGHTS, AdapterMeta, write_json
from peftcli.adapters.hf.hf_peft import hf_format
from peftcli.adapters.model_card import model_card
from peftcli.atomic import new_directory
from peftcli.recipe.params import MethodParams


def save_adapter(
    directory: Path,
    *,
    attachment_state: Mapping[str, Tensor],
    params: MethodParams,
    meta: AdapterMeta,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Write adapter_config.json, adapter_model.safetensors, peftcli.json and the model card.

    HF peft's layout where it has the method and these parameters, else ours.

    Args:
        directory: what is there is replaced, after everything is written and synced.
        attachment_state: `Attachment.state_dict()`; on any device, copied.
        params: the method's hyper-parameters.
        meta: `format.describe(...)`.
        metrics: final evaluation numbers for the model card.
    """
    theirs = hf_format(params, meta, attachment_state)
    tensors = theirs.to_file(attachment_state, params, meta) if theirs else dict(attachment_state)
    config = theirs.config(params, meta, attachment_state) if theirs else own_config(params)
    sidecar = {
        "format_version": FORMAT_VERSION,
        "peftcli_version": __version__,
        "layout": "hf_peft" if theirs else "peftcli",
        "method": params.model_dump(mode="json"),
        "meta": meta.as_dict(),
    }
    with new_directory(Path(directory)) as partial:
        write_tensors(partial / WEIGHTS, tensors)
        write_json(partial / CONFIG, config)
        write_json(partial / SIDECAR, sidecar)
        (partial / CARD).write_text(
            model_card(
                params, meta, loads_in_hf=theirs is not None, metrics=metrics, note=theirs.note if theirs else None
            ),
            encoding="utf-8",
        )


def own_config(params: MethodParams) -> dict[str, Any]:
    """Return the adapter_config.json of the layout that only this project reads; other loaders refuse its type."""
    return {
        "peft_type": OWN_TYPE,
        "method": params.name,
        "format_version": FORMAT_VERSION,
        "read_with": "the peft command of peftcli; the parameters are in peftcli.json",
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file; each with memory of its own, as the format asks."""
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})
