"""What became of the rows: counts, choices and their evidence, skipped rows; for the header and the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Counts:
    """Rows by what became of them: `rows` = kept + dropped + fully_masked + skipped; truncated ones are kept.

    Args:
        rows: rows that the files hold.
        kept: rows in use.
        truncated: kept rows that lost tokens to max_length (or were split by it).
        dropped: rows left out for their length.
        fully_masked: rows without anything to learn, left out.
        skipped: broken rows, with `data.on_error: skip`.
    """

    rows: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: int = 0
    fully_masked: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """Return the counts in the order of their names."""
        return tuple(asdict(self).values())

    def line(self, *, split: bool = False) -> str:
        """Return the counts that are not zero, for people; kept ones only where they are not all.

        Args:
            split: as in `counted`.
        """
        every = self.kept == self.rows
        shown = [(name, value) for name, value in asdict(self).items() if value and not (every and name == "kept")]
        return ", ".join(f"{value:,} {counted(name, split=split)}" for name, value in shown) or "0 rows"


_COUNTED: Mapping[str, str] = {
    "rows": "rows",
    "kept": "kept",
    "truncated": "truncated to max_length",
    "dropped": "dropped for their length",
    "fully_masked": "with nothing to learn",
    "skipped": "skipped as broken",
}


def counted(name: str, *, split: bool = False) -> str:
    """Return what a count counts, for people.

    Args:
        name: of a field of `Counts`.
        split: whether longer rows became several rows (`data.overflow: split`), so that nothing of them is cut.
    """
    return "split by max_length" if split and name == "truncated" else _COUNTED[name]


@dataclass(frozen=True)
class DataReport:
    """How the rows of a run were read and prepared.

    Args:
        counts: over all sets.
        sets: counts of the training and of each validation set's files (a split-off set belongs to the first).
        format: of the training rows; of several sources the first one's.
        formats: of all sources of training rows, each once; empty where they are not all known yet.
        evidence: for each source why its format was chosen.
        template: name of the chat template, None for plain text.
        cache: `hit` when all prepared rows were there already, else `miss`.
        skipped: broken rows that were left out, each with source, row, message and excerpt.
        notes: what a user should know, such as files in another encoding.
        train_rows, validation_rows: rows after the split.
        tokens, supervised_tokens: of the training rows, once.
        longest: tokens of the longest training row.
        packed_rows: rows after packing, None without.
        checks: how many answers were found how, and how many prefixes were tokenised again.
        unused: what of the rows is not used (columns, keys and turns of messages), and how many rows have it.
        split: whether rows longer than max_length became several rows; else they were cut, or left out.
    """

    counts: Counts = field(default_factory=Counts)
    sets: dict[str, Counts] = field(default_factory=dict)
    format: str = ""
    formats: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    template: str | None = None
    cache: str = "miss"
    cache_directory: str = ""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    train_rows: int = 0
    validation_rows: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    packed_rows: int | None = None
    checks: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    split: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for the run directory."""
        return asdict(self)

    def for_summary(self) -> dict[str, Any]:
        """Return the report as plain data without the skipped rows, which a run lists in a file of their own."""
        return {key: value for key, value in self.as_dict().items() if key != "skipped"}

    def summary(self) -> str:
        """Return the counts, template, packing and whether they were prepared before in one line, for a header."""
        parts = [self.counts.line(split=self.split)]
        if self.template:
            parts.append(f"chat template: {template_in_words(self.template)}")
        if self.packed_rows is not None:
            parts.append(f"packed into {self.packed_rows:,}")
        if self.cache == "hit":
            parts.append("prepared before")
        return "; ".join(parts)


def template_in_words(name: str | None) -> str:
    """Return the name of a chat template, for people."""
    return {None: "none, plain text", "tokenizer": "the tokenizer's own"}.get(name, str(name))


def unused_note(unused: Mapping[str, int]) -> list[str]:
    """Return one note on what of the rows is not used, with counts; none where all is."""
    if not unused:
        return []
    shown = [f"{name} ({count:,} {'row' if count == 1 else 'rows'})" for name, count in unused.items()]
    return [f"not used: {', '.join(shown)}"]
