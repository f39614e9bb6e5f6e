"""What an export for a server wrote."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ServerExport:
    """What was written.

    Args:
        output: the new directory, or the new file.
        kind: what `--to` was.
        method: of the run.
        base: the base model's name.
        files: names of the GGUF files in it, or of the adapter's.
        type: of the matrices of the GGUF file; None where there is none.
        tensors, bytes: how many were written.
        commands: what to type next.
        notes: what the user should know.
    """

    output: str
    kind: str
    method: str
    base: str
    files: tuple[str, ...]
    type: str | None
    tensors: int
    bytes: int
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)
