"""Which split of a data set a file, a folder or a list belongs to, and which of them a source reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from peftcli.errors import Problem, UserError

Purpose = Literal["train", "validation", "any"]
"""What rows are read for: to train on, to evaluate while training, or whatever is asked of a file that is named."""

_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "tst": "test",
    "testing": "test",
    "heldout": "test",
}
_PARTS = re.compile(r"[^a-zA-Z]+")
T = TypeVar("T")


def split_of(name: str) -> str | None:
    """Return train, validation or test where a word of a name says so (`my_dev-0001`), else None.

    The last such word decides: `train_test.jsonl` is the test file of something called train.
    """
    words = [word for word in _PARTS.split(name.lower()) if word in _NAMES]
    return _NAMES[words[-1]] if words else None


def split_of_file(path: Path, base: Path) -> str | None:
    """Return the split of a file below a folder: what its name says, else the nearest folder that says it."""
    inside = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
    stem = inside.name.split(".")[0]
    for name in (stem, *reversed(inside.parts[:-1])):
        if found := split_of(name):
            return found
    return None


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What of several parts is read.

    Args:
        items: in their order.
        note: what a user should know of it, or ''.
    """

    items: tuple[T, ...]
    note: str = ""


def choose_split(
    parts: Mapping[str, Sequence[T]], unnamed: Sequence[T], wanted: str | None, purpose: Purpose, what: str, key: str
) -> Choice[T]:
    """Choose among the parts of a source by their splits.

    Args:
        parts: what belongs to each split, by its name as the source has it.
        unnamed: what belongs to none.
        wanted: the recipe's `split`, or None.
        what: the source with its kind, for messages, such as `the folder data`.
        key: the recipe's key of `split`.

    Raises:
        UserError: the split is not there, or it is not clear which one is meant.
    """
    there = ", ".join(parts)
    if wanted is not None:
        names = [name for name in parts if name == wanted] or [
            name for name in parts if _canonical(name) == _canonical(wanted)
        ]
        if not names:
            text = f"{what} has no split {wanted!r}" if parts else f"{what} has no splits"
            remedy = f"its splits are {there}" if parts else f"leave {key} out, or name the file in its path"
            raise UserError(Problem(text, key=key, suggestion=remedy))
        return Choice(tuple(item for name in names for item in parts[name]))
    if not parts:
        return Choice(tuple(unnamed))
    if purpose == "any":
        if len(parts) + bool(unnamed) == 1:
            return Choice(tuple(item for items in parts.values() for item in items))
        text = f"{what} has several splits: {there}"
        raise UserError(Problem(text, key=key, suggestion="name the file of one of them"))
    names = [name for name in parts if _canonical(name) == purpose]
    if purpose == "validation" and not names and not unnamed and len(parts) == 1 and _canonical(there) != "train":
        names = list(parts)  # a folder of test rows that is named as the validation set
    items = [*(item for name in names for item in parts[name]), *(unnamed if purpose == "train" else ())]
    if not items:
        text = f"{what} has no {purpose} split; it has {there}"
        raise UserError(
            Problem(text, key=key, suggestion=f"name the one that is meant, such as {key}: {next(iter(parts))}")
        )
    left = [name for name in parts if name not in names]
    if not left:
        return Choice(tuple(items))
    read = ", ".join(names) or "the part without a split's name"
    return Choice(tuple(items), f"{what} has the splits {there}: {read} is read; {key} chooses another")


def choose_files(
    files: Sequence[Path], base: Path, wanted: str | None, purpose: Purpose, what: str, key: str
) -> Choice[Path]:
    """Choose among files below a folder by the splits that their names and folders say; see `choose_split`."""
    if wanted is not None and (exact := [file for file in files if _is_called(file, base, wanted)]):
        return Choice(tuple(exact))
    parts: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for file in files:
        found = split_of_file(file, base)
        (unnamed if found is None else parts.setdefault(found, [])).append(file)
    return choose_split(parts, unnamed, wanted, purpose, what, key)


def _is_called(file: Path, base: Path, name: str) -> bool:
    """Whether a file is that of a split by its very name (`train_sft-00000-of-00002`), or lies in a folder of it."""
    inside = file.relative_to(base) if file.is_relative_to(base) else Path(file.name)
    stem = inside.name.split(".")[0]
    return stem == name or stem.startswith(f"{name}-") or name in inside.parts[:-1]


def _canonical(name: str) -> str:
    return split_of(name) or name.lower()
