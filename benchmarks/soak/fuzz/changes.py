"""Random changes that the fuzzers share: of trees of plain data, of texts' lines and of raw bytes."""

from __future__ import annotations

import random
from typing import Any

from tests.recipe.pieces import KEYS, ODD_TEXTS, places

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 600, 10**400, -(10**30), 0.5, -2.0, 1e400, float("nan"), "", "x", "no", "epoch",
    "eval_f1", "sequence_classification", "seq2seq_lm", "split", "messages", "(", "float16", "\x1b[31m", "\x00",
    "\ud800", "a" * 2000, [], {}, [[]], [None], ["attn.q", "ffn"], {"name": "lora"}, {"path": "rows.jsonl"},
    [{"role": "user"}], *ODD_TEXTS,
)  # fmt: skip


def odd_value(draw: random.Random, depth: int = 2) -> Any:
    """Return plain data of any kind: a scalar of any type and size, or a small tree."""
    kind = draw.random()
    if depth == 0 or kind < 0.7:
        return draw.choice(ODD_VALUES)
    if kind < 0.8:
        return "".join(chr(draw.choice((draw.randrange(32, 127), draw.randrange(0x250)))) for _ in range(8))
    inner = [odd_value(draw, depth - 1) for _ in range(draw.randrange(4))]
    return inner if kind < 0.9 else {draw.choice((*KEYS, "name", "")): value for value in inner}


def changed_tree(draw: random.Random, tree: Any) -> Any:
    """Return a tree in which up to three values are replaced, added or removed; `tree` itself is changed."""
    for _ in range(draw.randint(1, 3)):
        found = list(places(tree))
        if not found:
            return odd_value(draw)
        node = tree
        for part in draw.choice(found):
            node = node[part]
        if isinstance(node, dict):
            name = draw.choice([*node, draw.choice(KEYS), str(odd_value(draw, 0))[:12]])
            if name in node and draw.random() < 0.3:
                del node[name]
            else:
                node[name] = odd_value(draw)
        elif node and draw.random() < 0.5:
            node[draw.randrange(len(node))] = odd_value(draw)
        else:
            node.append(odd_value(draw))
    return tree


def changed_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Return bytes with a bit flipped, a piece removed, repeated or replaced, or an end missing."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(min(len(raw), 400) if draw.random() < 0.5 else len(raw)) if raw else 0
        length = draw.choice((1, 1, 2, 4, 16, 64))
        how = draw.randrange(6)
        if how == 0 and raw:
            raw = raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :]
        elif how == 1:
            raw = raw[:at] + raw[at + length :]
        elif how == 2:
            raw = raw[:at] + raw[at : at + length] * 2 + raw[at + length :]
        elif how == 3:
            raw = raw[:at] + draw.randbytes(length) + raw[at + length :]
        elif how == 4:
            raw = raw[:at] + draw.choice((b"\0" * length, b"[" * 3000, b'"', b"{", b"\xff\xfe", b"\r", b"1e999"))
        elif draw.random() < 0.3:
            raw = raw[:at]
    return raw
