"""A conversion under way: the recipe so far, and for each key of the other tool what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from peftcli.recipe.yaml.scalars import show
from peftcli.recipe.yaml.value_tree import dotted
from peftcli.recipe.yaml.yaml_lines import Document, Key

State = Literal["translated", "dropped", "decide", "empty", "default"]


@dataclass(frozen=True)
class Outcome:
    """What became of one key.

    Args:
        file, line: where it is written; no line for what the other tool does where the key is missing.
        key, value: theirs; the value as text.
        state: `translated`; `dropped`, because a recipe needs no such key; `decide`, because nothing here is the same;
            `empty`, as examples advertise options; `default`, a missing key whose default differs here.
        ours: our dotted key.
        note: why, or what to do.
    """

    file: str
    line: int | None
    key: str
    value: str
    state: State
    ours: str | None = None
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return an object of `convert --json`."""
        return asdict(self)


@dataclass
class Conversion:
    """The recipe so far, and what became of each key.

    Args:
        tool: whose configuration it is.
        file: its path, as the user named it.
        document: its data, with lines.
    """

    tool: str
    file: str
    document: Document
    recipe: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def put(self, key: Key, ours: str, value: Any, note: str | None = None) -> None:
        """Set our key to the value that theirs stands for."""
        self.set(ours, value)
        self._note(key, "translated", ours, note)

    def say(self, key: Key, ours: str, note: str | None = None) -> None:
        """Note that a key is translated where the value is set elsewhere, as those of a data set are."""
        self._note(key, "translated", ours, note)

    def drop(self, key: Key, note: str) -> None:
        """Leave a key out: a recipe needs none."""
        self._note(key, "dropped", None, note)

    def decide(self, key: Key, note: str, ours: str | None = None) -> None:
        """Leave a key to the user: nothing here is the same."""
        self._note(key, "decide", ours, note)

    def empty(self, key: Key) -> None:
        """Leave out a key without a value."""
        self._note(key, "empty", None, None)

    def default(self, ours: str, value: Any) -> None:
        """Set our key to what the other tool does where its own is missing, if nothing has set it."""
        if self.get(ours) is None:
            self.set(ours, value)
            note = f"what {self.tool} does without it"
            self.outcomes.append(Outcome(self.file, None, "(missing)", show(value), "default", ours, note))

    def set(self, ours: str, value: Any) -> None:
        """Set a dotted key of the recipe."""
        *blocks, last = ours.split(".")
        node = self.recipe
        for block in blocks:
            node = node.setdefault(block, {})
        node[last] = value

    def get(self, ours: str) -> Any:
        """Return the value of a dotted key of the recipe, in which numbers count the elements of a list, or None."""
        node: Any = self.recipe
        for part in ours.split("."):
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            else:
                node = node.get(part) if isinstance(node, dict) else None
        return node

    def remove(self, ours: str) -> None:
        """Take a dotted key out of the recipe again, if it is there."""
        block, _, last = ours.rpartition(".")
        node = self.get(block) if block else self.recipe
        if isinstance(node, dict):
            node.pop(last, None)

    def refuse(self, ours: str, note: str) -> None:
        """Take a value out of the recipe that it does not take, and leave its key to the user."""
        self.remove(ours)
        said = False
        for index, one in enumerate(self.outcomes):
            if one.ours is not None and (one.ours == ours or ours.startswith(f"{one.ours}.")):
                self.outcomes[index] = Outcome(one.file, one.line, one.key, one.value, "decide", one.ours, note)
                said = True
        if not said:
            self.outcomes.append(Outcome(self.file, None, "(missing)", "", "decide", ours, note))

    def of(self, state: State) -> list[Outcome]:
        """Return the outcomes of one kind, in the order of the file."""
        found = [one for one in self.outcomes if one.state == state]
        return sorted(found, key=lambda one: (one.line is None, one.line or 0))

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield the keys and values at the top of their configuration."""
        yield from ((str(key), value) for key, value in self.document.data.items())

    def _note(self, key: Key, state: State, ours: str | None, note: str | None) -> None:
        value: Any = self.document.data
        for part in key:
            value = value[part]
        text = show(value)
        line = self.document.lines.get(key)
        self.outcomes.append(Outcome(self.file, line, dotted(key), text[:60], state, ours, note))
