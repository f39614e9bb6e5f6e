"""Write a saved adapter in HF peft's format, slices of fused projections as the equal change of the whole module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from peftcli.adapters.format import CARD, CONFIG, WEIGHTS, write_json
from peftcli.adapters.hf import adalora as hf_adalora
from peftcli.adapters.hf import hf_peft
from peftcli.adapters.hf.slices import pad_pairs, pad_vectors
from peftcli.adapters.loading import SavedAdapter, load_adapter
from peftcli.adapters.model_card import model_card
from peftcli.adapters.saving import write_tensors
from peftcli.atomic import new_directory
from peftcli.errors import UserError
from peftcli.methods.adalora import AdaLoraParams
from peftcli.methods.ia3 import IA3Params
from peftcli.methods.lora import LoraParams

Instead = Literal["lora"]


@dataclass(frozen=True)
class Exported:
    """Files for HF peft.

    Args:
        config: adapter_config.json.
        tensors: adapter_model.safetensors.
        notes: how they differ from what was trained, for the user.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def to_hf_peft(directory: Path | str, out: Path | str, *, instead: Instead | None = None) -> tuple[str, ...]:
    """Write the adapter of `directory` into `out` for HF peft, and nothing that only this project reads.

    Args:
        directory: a saved adapter.
        out: a new directory; what is there is replaced.
        instead: `lora` writes an AdaLoRA as the plain LoRA that is equal to it.

    Returns:
        Notes for the user.

    Raises:
        UserError: HF peft has no such method, or cannot hold these parameters; says which and what to do instead.
    """
    saved = load_adapter(directory)
    exported = layout(saved, Path(directory), instead)
    with new_directory(Path(out)) as partial:
        write_tensors(partial / WEIGHTS, exported.tensors)
        write_json(partial / CONFIG, exported.config)
        known = hf_peft.FORMATS[saved.params.name]
        card = model_card(saved.params, saved.meta, loads_in_hf=True, note=known.note)
        (partial / CARD).write_text(card, encoding="utf-8")
    return exported.notes


def layout(saved: SavedAdapter, where: Path, instead: Instead | None = None) -> Exported:
    """Return an adapter's files for HF peft; see `to_hf_peft`."""
    params, state, meta = saved.params, saved.state, saved.meta
    if instead == "lora":
        params, state = _as_lora(saved, where)
    if meta.targets and any(target.slice for target in meta.targets):
        if isinstance(params, LoraParams):
            notes = ("slices of fused projections became one pair for the whole module: equal, but of a higher rank",)
            return Exported(*pad_pairs(state, params, meta), notes)
        if isinstance(params, IA3Params):
            state, meta = pad_vectors(state, meta)
    known = hf_peft.FORMATS.get(params.name)
    reason = known.why_not(params, meta, state) if known else "HF peft has no such method"
    if known is None or reason is not None:
        raise UserError(f"{where}: {params.name} cannot be exported: {reason}", suggestion=_remedy(saved))
    return Exported(known.config(params, meta, state), known.to_file(state, params, meta))


def _as_lora(saved: SavedAdapter, where: Path) -> tuple[LoraParams, dict[str, Tensor]]:
    if isinstance(saved.params, AdaLoraParams):
        return hf_adalora.as_lora(saved.params, saved.state, saved.meta)
    if isinstance(saved.params, LoraParams):
        return saved.params, saved.state
    raise UserError(
        f"{where}: {saved.params.name} is no low-rank change that plain LoRA could hold",
        suggestion="leave --as out; --as lora is for adalora",
    )


def _remedy(saved: SavedAdapter) -> str:
    if isinstance(saved.params, AdaLoraParams):
        return "export it as plain LoRA, which is equal: --as lora"
    if saved.params.name == "prompt_tuning":
        return "train with method.prompt_position: front to export it; as it is, use it with peft predict"
    if saved.params.name in ("adapter", "parallel_adapter", "compacter"):
        return "export it for AdapterHub's library: --to adapterhub"
    from peftcli.protocol.registry import registry

    if registry.info(saved.params.name).why_not_mergeable(saved.params) is None:
        return "fold it into the base with peft merge, which any library loads"
    return "use it with peft predict, which reads the run as it is"
