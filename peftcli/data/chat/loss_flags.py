"""What a message itself says of its loss: the keys of several tools by which a turn is learnt or left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.read.records import RowError

LEARN = ("train", "training", "weight", "loss", "loss_weight", "trainable", "learn", "train_on_turn")
"""Keys whose value says that a message is learnt, such as `train` (axolotl), `weight` (OpenAI), `loss` (ms-swift)."""

MASK = ("mask", "masked", "ignore", "no_loss")
"""Keys whose value says that it is not."""

FLAGS = frozenset((*LEARN, *MASK))


def loss_flag(turn: Mapping[str, Any], number: int) -> bool | None:
    """Return whether a message says to learn it or not; None where it says nothing.

    Args:
        number: of the message, for errors.

    Raises:
        RowError: a value is neither true nor false, 1 nor 0, or two flags disagree.
    """
    flags = {key: _truth(key, turn[key], number) for key in (*LEARN, *MASK) if turn.get(key) is not None}
    if len(set(flags.values())) > 1:
        raise RowError(f"{' and '.join(flags)} of message {number} disagree", "one of the two")
    return next(iter(flags.values()), None)


def _truth(key: str, value: Any, number: int) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value
    if text not in (0, 1, "0", "1", "true", "false"):
        raise RowError(f"{key} of message {number} is {value!r}", "true or false, 1 or 0")
    learnt = text in (1, "1", "true")
    return learnt if key in LEARN else not learnt
