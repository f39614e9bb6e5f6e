"""Put rows together into the tensors of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from peftcli.data.rows.row_set import Row, sequences_of
from peftcli.ignored_label import IGNORED
from peftcli.models.packed_documents import PackingRoute, block_causal
from peftcli.tasks.task_info import RowKind

if TYPE_CHECKING:
    from torch import Tensor


def collate(
    rows: Sequence[Row],
    tokenizer: Any,
    kind: RowKind,
    *,
    padding_side: str = "right",
    packing_route: PackingRoute = "positions",
) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `labels` of a batch, padded to its longest row.

    Packed rows have `position_ids` instead of a mask: transformers keeps documents apart only when positions restart,
    no mask is given, and no cache is used. Padding behind a packed row is a document of its own. Where the model looks
    at positions in a single row only, packed rows are put behind each other in one.

    Args:
        rows: with labels of the same shape; labels are left out when a row has none.
        kind: what a row is, which says how labels are padded.
        padding_side: right or left; packed rows are padded on the right.
        packing_route: how the model keeps packed documents apart; `models.packed_documents.packing_route` finds out.

    Returns:
        int64 tensors (rows, length); labels (rows,) for classes, float (rows,) or (rows, labels) for numbers.
    """
    if packing_route == "joined" and len(rows) > 1 and rows[0].position_ids is not None:
        rows = [_behind_each_other(rows)]
    longest = max(len(row.input_ids) for row in rows)
    packed = rows[0].position_ids is not None
    side = "right" if packed else padding_side
    pad = tokenizer.pad_token_id
    out: dict[str, npt.NDArray[Any]] = {
        "input_ids": _pad([row.input_ids for row in rows], longest, 0 if pad is None else pad, side)
    }
    if packed:
        out["position_ids"] = _positions(rows, longest)
    else:
        out["attention_mask"] = _pad([np.ones(len(row.input_ids)) for row in rows], longest, 0, side)
    if rows[0].token_type_ids is not None:
        types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        out["token_type_ids"] = _pad(types, longest, 0, side)
    if all(row.labels is not None for row in rows):
        out["labels"] = _labels(rows, kind, longest, side)
    tensors = _tensors(out)
    if packed and packing_route in ("bool_mask", "float_mask"):
        tensors["attention_mask"] = block_causal(tensors["position_ids"], packing_route)
    return tensors


def preference_tensors(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return `learnt`, how many tokens of each sequence are compared, and `reference` (rows, sequences of a row) where
    rows have it; of single answers also `good` (rows,), 1 for a good one and 0 for a bad one.
    """
    learnt = []
    for sequence in (sequence for row in rows for sequence in sequences_of(row)):
        learnt.append(int((np.asarray(sequence.labels)[1:] != IGNORED).sum()))
    out: dict[str, npt.NDArray[Any]] = {"learnt": np.array(learnt, dtype=np.int64)}
    reference = [row.reference for row in rows if row.reference is not None]
    if len(reference) == len(rows):
        out["reference"] = np.stack(reference)
    sides = [np.unique(row.token_type_ids) for row in rows if row.token_type_ids is not None]
    if len(sides) == len(rows) and all(len(side) == 1 for side in sides):
        out["good"] = np.array([float(side[0] == 0) for side in sides], dtype=np.float32)
    return _tensors(out)


def _behind_each_other(rows: Sequence[Row]) -> Row:
    """Return packed rows as one; the positions and labels of each stay, and so its documents stay apart."""
    positions = [row.position_ids for row in rows if row.position_ids is not None]
    labels: list[Any] = [row.labels for row in rows if row.labels is not None]
    return replace(
        rows[0],
        input_ids=np.concatenate([row.input_ids for row in rows]),
        labels=np.concatenate(labels) if len(labels) == len(rows) else None,
        position_ids=np.concatenate(positions),
        documents=None,
    )


def _labels(rows: Sequence[Row], kind: RowKind, longest: int, side: str) -> npt.NDArray[Any]:
    labels: list[Any] = [row.labels for row in rows]
    if not isinstance(labels[0], np.ndarray):
        return np.array(labels, dtype=np.float32 if isinstance(labels[0], float) else np.int64)
    if kind == "labelled":
        return np.stack(labels)
    if kind == "pairs":
        return _pad(labels, max(len(one) for one in labels), IGNORED, "right")
    return _pad(labels, longest, IGNORED, side)


def _positions(rows: Sequence[Row], longest: int) -> npt.NDArray[np.int64]:
    out = np.empty((len(rows), longest), dtype=np.int64)
    for place, row in enumerate(rows):
        assert row.position_ids is not None  # packed rows all have them
        own = len(row.position_ids)
        out[place, :own] = row.position_ids
        out[place, own:] = np.arange(longest - own)
    return out


def _pad(values: Sequence[npt.NDArray[Any]], longest: int, fill: int, side: str) -> npt.NDArray[np.int64]:
    out = np.full((len(values), longest), fill, dtype=np.int64)
    for place, value in enumerate(values):
        if side == "right":
            out[place, : len(value)] = value
        else:
            out[place, longest - len(value) :] = value
    return out


def _tensors(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    import torch  # here: reading and preparing data needs no torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}
