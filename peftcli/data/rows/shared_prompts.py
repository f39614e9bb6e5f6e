"""The prompt that the two answers of a preference have in common, which need not be computed twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftcli.data.rows.packing import join
from peftcli.data.rows.row_set import Row, sequences_of
from peftcli.ignored_label import IGNORED


def shared_tokens(first: Row, second: Row) -> int:
    """Return how many tokens at the beginning of the second sequence are computed with the first one's.

    They are the same in both, and no label is among them. The last token of the prompt is not: the first token of each
    answer is predicted from it, so each sequence has its own.
    """
    length = min(len(first.input_ids), len(second.input_ids))
    same = first.input_ids[:length] == second.input_ids[:length]
    for row in (first, second):
        same &= np.asarray(row.labels)[:length] == IGNORED
    return max(0, (length if same.all() else int(same.argmin())) - 1)


def join_sharing(rows: Sequence[Row]) -> Row:
    """Return preferences behind each other as one row, the prompt of each pair once."""
    sequences, continued = [], []
    for row in rows:
        first, *others = sequences_of(row)
        sequences += [first, *others]
        continued += [0, *(shared_tokens(first, other) for other in others)]
    return join(sequences, continued)
