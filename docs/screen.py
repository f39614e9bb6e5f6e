"""Picture of a command on a terminal of 80 columns: `python docs/screen.py PICTURE.svg peft train configs/lora.yaml`.

The command runs in a pseudo-terminal, with colours; the picture is what is left on the screen at its end, the moving
bar in its last state. `docs/train.svg` was made with `peft train configs/lora.yaml`, and `docs/inspect-adapter.svg`
is what `peft inspect-adapter RUN --plot docs/inspect-adapter.svg` writes. Needs a POSIX system.
"""

from __future__ import annotations

import os
import pty
import re
import sys
from contextlib import suppress
from pathlib import Path

COLUMNS = 80
_PIECE = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


def screen(output: str) -> list[str]:
    """Return the lines that a terminal shows after an output, with the codes of their colours.

    A program that redraws goes up, erases whole lines and writes them anew: nothing else moves the cursor here.
    """
    lines, row = [""], 0
    for piece in _PIECE.finditer(output):
        text, kind = piece[0], piece[2]
        if text == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif kind == "A":
            row = max(0, row - int(piece[1] or 1))
        elif kind == "K":
            lines[row] = ""
        elif kind in (None, "m") and text != "\r":
            lines[row] += text
    return lines


def run(command: list[str]) -> str:
    """Return what a command writes on a terminal; what it writes is shown here, too."""
    os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    written = b""

    def read(terminal: int) -> bytes:
        nonlocal written
        piece = os.read(terminal, 4096)
        written += piece
        return piece

    with suppress(OSError):
        pty.spawn(command, read)
    return written.decode(errors="replace")


def main(picture: Path, command: list[str]) -> None:
    """Write the picture of a command."""
    from rich.console import Console
    from rich.text import Text

    lines = screen(run(command))
    while lines and not lines[-1].strip():
        lines.pop()
    console = Console(width=COLUMNS, record=True, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    font = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
    drawn = console.export_svg(title=" ".join(command), unique_id="terminal")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S).replace("Fira Code, monospace", font)
    picture.write_text("\n".join(line.rstrip() for line in drawn.splitlines()) + "\n", encoding="utf-8")
    print(f"wrote {picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python docs/screen.py PICTURE.svg COMMAND...")
    main(Path(sys.argv[1]), sys.argv[2:])
