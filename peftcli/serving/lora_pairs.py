"""An adapter as the pairs of a plain LoRA with their scales, where it is one: what servers multiply with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.format import SavedAdapter
from peftcli.adapters.hf.hf_export import hf_peft_files
from peftcli.adapters.hf.hf_files import PREFIX, first_match
from peftcli.adapters.hf.hf_format import HfFiles
from peftcli.adapters.hf.hf_table import FORMATS
from peftcli.adapters.library import PLAIN_LORA
from peftcli.adapters.servers import is_set, server_rules
from peftcli.errors import UserError
from peftcli.protocol.registry import registry
from peftcli.tasks.task_table import task_info

LINEAR = (".lora_A.weight", ".lora_B.weight")
TABLE = (".lora_embedding_A", ".lora_embedding_B")
"""How the keys of a pair end, at a linear (or Conv1D) and at a table."""


@dataclass(frozen=True)
class Pair:
    """One changed matrix: the change is `scale * b @ a`.

    Args:
        module: its path.
        a: (rank, in).
        b: (out, rank).
        scale: float.
        table: whether the module is a table of embeddings; then a is (rank, rows) and the change its transpose.
    """

    module: str
    a: Tensor
    b: Tensor
    scale: float
    table: bool

    @property
    def rank(self) -> int:
        """Rank of the pair."""
        return len(self.a)


def lora_files(saved: SavedAdapter, source: Path, server: str) -> HfFiles:
    """Return the files of a plain LoRA in HF peft's layout that is equal to an adapter.

    Args:
        saved: the adapter.
        source: its directory, for messages.
        server: as `servers.json` calls it.

    Raises:
        UserError: the adapter is no plain LoRA, or holds more than one; says what to do instead.
    """
    name, rule = saved.params.name, server_rules()[server]
    if task_info(saved.meta.task).hf_task_type not in rule["task_types"]:
        raise UserError(
            f"{server} serves causal models, and {source} was trained for {saved.meta.task}",
            suggestion="use it with peft predict, or export it for another library: --to hf-peft",
        )
    known = FORMATS.get(name)
    if known is None or known.as_lora(saved.params, saved.meta, saved.state) is None:
        raise UserError(f"{server} loads LoRA, and {source} holds {name}", suggestion=_elsewhere(saved, server))
    files = hf_peft_files(saved, source, PLAIN_LORA)
    more = [key for key in rule["refused_if_set"] if key not in rule["export_folds"] and is_set(files.config, key)]
    if files.config.get("bias", "none") not in rule["bias"]:
        more.append("bias")
    if more:
        raise UserError(
            f"{server} loads a plain LoRA, and that of {source} has {' and '.join(more)}",
            suggestion=_elsewhere(saved, server, plain="target_parameters" not in more),
        )
    return files


def _elsewhere(saved: SavedAdapter, server: str, *, plain: bool = True) -> str:
    """Return what to do with an adapter that a server does not load; `plain`: a plain LoRA can be near to it."""
    if registry.method(saved.params.name).why_not_mergeable(saved.params) is not None:
        return "use it with peft predict and peft chat, which read the run as it is"
    whole = server_rules()[server]["export_whole"]
    fold = f"fold it into the base with {whole}"
    return f"{fold}; or take the nearest plain LoRA: --to {PLAIN_LORA} --rank 16" if plain else fold


def lora_pairs(files: HfFiles) -> list[Pair]:
    """Return the pairs of a LoRA in HF peft's layout, in the order of the file."""
    pairs = []
    for key, a in files.tensors.items():
        for first, second in (LINEAR, TABLE):
            if key.endswith(first):
                module = key.removesuffix(first)
                scale = _scale(files.config, module.removeprefix(PREFIX))
                b = files.tensors[module + second]
                pairs.append(Pair(module.removeprefix(PREFIX), a.float(), b.float(), scale, first == TABLE[0]))
    return pairs


def _scale(config: Mapping[str, Any], module: str) -> float:
    rank = int(first_match(config.get("rank_pattern") or {}, module, config["r"]))
    alpha = float(first_match(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
