"""Rows that another process encoded are those that it made."""

from __future__ import annotations

import numpy as np

from peftcli.data.encode.encoded import Encoded, FlatRows


def test_rows_are_the_same_behind_a_process() -> None:
    learnt = [Encoded(np.arange(n, dtype=np.int32), np.arange(n) % 2 == 0, truncated=n == 2) for n in (1, 2, 5)]
    tagged = [Encoded(np.arange(n, dtype=np.int32), labels=np.full(3 - n, n, dtype=np.int32)) for n in (1, 2)]
    valued = [Encoded(np.ones(2, np.int32), types=np.zeros(2, np.uint8), value=v) for v in (0.5, 2.0)]
    for rows in (learnt, tagged, valued, []):
        again = FlatRows.of(rows).rows()
        assert len(again) == len(rows)
        for one, other in zip(rows, again, strict=True):
            assert (one.value, one.truncated) == (other.value, other.truncated)
            for name in ("ids", "mask", "labels", "types"):
                before, after = getattr(one, name), getattr(other, name)
                assert (before is None and after is None) or (
                    before.dtype == after.dtype and before.tolist() == after.tolist()
                )
