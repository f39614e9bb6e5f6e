"""Trained rows of tokens in HF peft's files (`trainable_token_indices`): read from the config and the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.adapter_files import CONFIG
from peftcli.errors import UserError
from peftcli.protocol.rows_beside.added_rows import ROWS


@dataclass(frozen=True)
class ReadRows:
    """The rows of an adapter.

    Args:
        state: the rows by our keys, in ascending order of their numbers.
        numbers: by the path of their table.
    """

    state: dict[str, Tensor]
    numbers: dict[str, list[int]]


def read_rows(config: Mapping[str, Any], state: Mapping[str, Tensor], where: Path) -> ReadRows:
    """Return the rows among an adapter's tensors.

    Args:
        config: adapter_config.json: one list for the input embeddings, or one for each table by the end of its path.
        state: the tensors without HF peft's prefix.
        where: the directory, for messages.

    Raises:
        UserError: config and tensors do not name the same rows.
    """
    named = config.get("trainable_token_indices") or {}
    paths = [key.removesuffix(ROWS) for key in state if key.endswith(ROWS)]
    found = ReadRows({}, {})
    for path in paths:
        lists = [ids for name, ids in named.items() if path.endswith(name)] if isinstance(named, dict) else [named]
        ids, rows = list(lists[0]) if lists else [], state[path + ROWS]
        if len(ids) != len(rows) or len(set(ids)) != len(ids):
            reason = f"trainable_token_indices names {len(ids)} rows of {path}, and the file holds {len(rows)}"
            raise UserError(f"{where / CONFIG}: {reason}", suggestion="save or download the adapter again")
        order = sorted(range(len(ids)), key=ids.__getitem__)
        found.numbers[path] = [ids[place] for place in order]
        found.state[path + ROWS] = rows[torch.tensor(order)]
    if named and not paths:
        raise UserError(f"{where / CONFIG} names trainable_token_indices, and the file holds no rows of tokens")
    return found
