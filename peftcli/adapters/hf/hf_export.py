"""Write a saved adapter for HF peft: as it is, as plain LoRA, or with whole modules in place of slices."""

from __future__ import annotations

from pathlib import Path

from peftcli.adapters.adapter_files import CARD, CONFIG, WEIGHTS, write_json, write_tensors
from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.hf.hf_files import hf_use
from peftcli.adapters.hf.hf_format import HfFiles
from peftcli.adapters.hf.hf_table import FORMATS
from peftcli.adapters.library import PLAIN_LORA, other_use
from peftcli.adapters.model_card import adapter_card
from peftcli.errors import UserError


def write(saved: SavedAdapter, source: Path, output: Path, instead: str | None) -> tuple[str, ...]:
    """Write the files that HF peft loads; peftcli.json, which only this project reads, is left out.

    Args:
        saved: an adapter of one of `FORMATS`.
        source: its directory, for messages.
        output: an empty directory.
        instead: `lora` writes an AdaLoRA as the plain LoRA that is equal to it.

    Returns:
        Notes for the user.

    Raises:
        UserError: HF peft cannot hold these parameters; says why, and what to do instead.
    """
    files = hf_peft_files(saved, source, instead)
    use = hf_use(saved.meta, FORMATS[saved.params.name].note)
    write_tensors(output / WEIGHTS, files.tensors)
    write_json(output / CONFIG, files.config)
    (output / CARD).write_text(adapter_card(saved.params, saved.meta, use=use), encoding="utf-8")
    return files.notes


def hf_peft_files(saved: SavedAdapter, source: Path, instead: str | None = None) -> HfFiles:
    """Return an adapter's files for HF peft; see `write`."""
    params, state, meta = saved.params, saved.state, saved.meta
    known = FORMATS[params.name]
    if instead == PLAIN_LORA:
        plain = known.as_lora(params, meta, state)
        if plain is None:
            raise UserError(
                f"{source}: {params.name} is not a low-rank change, so plain LoRA cannot hold it",
                suggestion=f"leave --as out; --as {PLAIN_LORA} is for adalora",
            )
        params, state = plain
        known = FORMATS[params.name]
    if (beside := known.why_not_beside(meta)) is not None:
        raise UserError(f"{source}: {params.name} cannot be exported: {beside}", suggestion=other_use(params))
    reason = known.why_not(params, meta, state)
    if reason is not None and any(target.slice or target.kind == "experts" for target in meta.targets):
        files = known.whole_module_files(params, meta, state)
        if files is not None:
            return files
    if reason is not None:
        raise UserError(
            f"{source}: {params.name} cannot be exported: {reason}", suggestion=known.remedy or other_use(params)
        )
    state = known.for_export(state, params)
    return HfFiles(known.config(params, meta, state), known.to_file(state, params, meta))
