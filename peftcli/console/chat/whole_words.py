"""An answer that appears while it is written, in lines that part between words."""

from __future__ import annotations

import re
from typing import TextIO

_ALONE = "\u2e80-\uffff"  # Chinese, Japanese and Korean: a line may end after any of these
_PIECES = re.compile(rf"\n|[^\S\n]+|[{_ALONE}]|[^\s{_ALONE}]+")


class WholeWords:
    """Writes a text that comes in pieces on a terminal: a word is written when it has ended.

    A word wider than the terminal is parted by the terminal.

    Args:
        stream: the terminal.
        width: its columns.
        column: where the text begins.
    """

    def __init__(self, stream: TextIO, width: int, column: int = 0) -> None:
        self._stream, self._width, self._column = stream, width, column
        self._word = ""
        self._space = ""

    def write(self, text: str) -> None:
        """Write the words that are whole with this piece."""
        for piece in _PIECES.findall(text):
            alone = piece >= _ALONE[0]
            if alone or piece.isspace():
                self._put_word()
            if piece == "\n":
                self._new_line()
            elif piece.isspace():
                self._space += piece
            else:
                self._word += piece
            if alone or self._cells(self._word) > self._width:
                self._put_word()
        self._stream.flush()

    def end(self) -> None:
        """Write what is left."""
        self._put_word()
        self._stream.flush()

    def _put_word(self) -> None:
        if not self._word:
            return
        if self._column and self._column + self._cells(self._space + self._word) > self._width:
            self._new_line()
        self._stream.write(self._space + self._word)
        filled = self._column + self._cells(self._space + self._word)
        self._column = filled if filled <= self._width else filled % self._width
        self._word = self._space = ""

    def _new_line(self) -> None:
        self._stream.write("\n")
        self._column, self._space = 0, ""

    @staticmethod
    def _cells(text: str) -> int:
        from rich.cells import cell_len

        return cell_len(text.expandtabs())
