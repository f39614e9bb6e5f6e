"""A run with a plain LoRA adapter in the place of its own, with the record that such an adapter has."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor

from peftcli.adapters.format import SavedAdapter, places_of
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.methods.lora import LoraParams
from peftcli.protocol.apply_method import apply_method

LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
"""The keys of a pair at a linear (or Conv1D), and at a table."""


def with_lora(
    run: RunToMerge,
    entries: list[str],
    ranks: Mapping[str, int],
    state: dict[str, Tensor],
    experts: Collection[int] | None = None,
) -> RunToMerge:
    """Return a run with a LoRA whose factors hold every scale: alpha is the rank.

    Args:
        run: the run; its adapter's record names the task head and the modules trained whole.
        entries: `target_modules`.
        ranks: by the targets' keys.
        state: the pairs, the head, and the modules trained whole.
        experts: numbers of those that are changed, where some are; None for all.
    """
    assert run.adapter is not None  # a run of a complete model has no adapter to replace
    largest = max(ranks.values())
    smaller = {f"^{re.escape(key)}": size for key, size in ranks.items() if size != largest}
    meta = run.adapter.meta
    params = LoraParams(
        r=largest,
        lora_alpha=largest,
        target_modules=entries,
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        modules_to_save=list(meta.modules_to_save) or None,
        experts_to_transform=None if experts is None else sorted(experts),
    )
    attachment = apply_method(run.model, run.anatomy, params)  # on the meta device
    try:
        meta = replace(meta, **places_of(attachment))
    finally:
        attachment.detach()
        run.model.requires_grad_(False)
    return replace(run, adapter=SavedAdapter(params, state, meta), combined=None)
