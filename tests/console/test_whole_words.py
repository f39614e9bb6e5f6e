"""An answer of `peft chat` parts between words, whatever pieces it comes in."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len

from peftcli.console.chat.whole_words import WholeWords

ENGLISH = "It was the best of times,\n\n    it was the age of wisdom.  "
ENGLISH_LINES = ["It was the", "best of times,", "", "    it was the age", "of wisdom."]
CHINESE = "您好我是一个助手很高兴 peft 。"
CHINESE_LINES = ["您好我是一个助", "手很高兴 peft 。"]


@pytest.mark.parametrize(("text", "lines"), [(ENGLISH, ENGLISH_LINES), (CHINESE, CHINESE_LINES)], ids=["en", "zh"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_fit_and_words_stay_whole(text: str, lines: list[str], size: int) -> None:
    stream = io.StringIO()
    words = WholeWords(stream, 20, column=6)
    for start in range(0, len(text), size):
        words.write(text[start : start + size])
    words.end()
    assert stream.getvalue().split("\n") == lines
    assert cell_len(lines[0]) <= 14 and all(cell_len(line) <= 20 for line in lines)


def test_a_word_shows_once_it_has_ended_and_a_sign_at_once() -> None:
    stream = io.StringIO()
    words = WholeWords(stream, 20)
    words.write("one tw")
    assert stream.getvalue() == "one"
    words.write("o 您")
    assert stream.getvalue() == "one two 您"


def test_a_word_wider_than_the_terminal_is_left_to_it() -> None:
    stream = io.StringIO()
    words = WholeWords(stream, 20)
    words.write("x" * 45 + " and on")
    words.end()
    assert stream.getvalue() == "x" * 45 + " and on"
