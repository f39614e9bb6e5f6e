"""The data of a recipe before it is checked, and where each value was written: a line, or an override."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftcli.errors import Problem
from peftcli.recipe.yaml.yaml_lines import Document, Key


def dotted(key: Key) -> str:
    """Return a key's path as users write it: `method.parts.0.r`."""
    return ".".join(str(part) for part in key)


def has_part(data: Any, part: str | int) -> bool:
    """Return whether `data[part]` exists: a key of a mapping, or an element of a list."""
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


@dataclass
class Tree:
    """The data of one recipe file, with overrides applied.

    Args:
        file: the recipe, as the user named it.
        data: the top-level mapping.
        lines: the 1-based line of each key and list element.
        overridden: the override, as it was typed, of each key that has one.
        references: the text of each value that names environment variables, as it was written.
    """

    file: str
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)
    overridden: dict[Key, str] = field(default_factory=dict)
    references: dict[Key, str] = field(default_factory=dict)

    @classmethod
    def from_document(cls, file: str, document: Document) -> Tree:
        """Return the tree of a parsed file; its top level is a mapping."""
        return cls(file, document.data, document.lines, references=document.references)

    def where(self, key: Key) -> tuple[str, int | None]:
        """Return where `key` or the block around it was written: (file, line), or (`override a.b=1`, None)."""
        for end in range(len(key), 0, -1):
            part = key[:end]
            if part in self.overridden:
                return f"override {self.overridden[part]}", None
            if part in self.lines:
                return self.file, self.lines[part]
        return self.file, None

    def problem(self, key: Key, message: str, suggestion: str | None = None) -> Problem:
        """Return a problem of a key, with the place where the key was written."""
        file, line = self.where(key)
        return Problem(message, file=file, line=line, key=dotted(key) or None, suggestion=suggestion)

    def value(self, key: Key) -> Any:
        """Return the value at `key`, or None where there is none."""
        current: Any = self.data
        for part in key:
            if not has_part(current, part):
                return None
            current = current[part]
        return current
