"""Text from files cannot steer the terminal: whatever a command writes, control characters are written out."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from peftcli.console.output import print_json
from peftcli.console.terminal import ShownStream, data_stream, safe_console, shown_streams
from peftcli.shown_text import all_of, escape, first_line, shown, some_of
from tests.command_line import Workspace, write_jsonl

TITLE = "\x1b]0;title\x07"


def test_control_characters_are_written_as_json_writes_them() -> None:
    text = f"a\tb\n{TITLE}\r\x9b31m\u202eevil\u2069\ud83d"
    assert shown(text) == "a\tb\n\\u001b]0;title\\u0007\\u000d\\u009b31m\\u202eevil\\u2069\\ud83d"
    assert json.loads(shown(json.dumps({"a": text}, ensure_ascii=False))) == {"a": text}
    assert escape(f"<b>{TITLE}") == "&lt;b&gt;\\u001b]0;title\\u0007"


def test_what_an_encoding_lacks_is_written_out() -> None:
    behind = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    ShownStream(behind).writelines(["é🙂", TITLE, "\r50%", "\x1b[A"])
    assert behind.buffer.getvalue() == b"\\xe9\\U0001f642\\u001b]0;title\\u0007\r50%\x1b[A"  # type: ignore[attr-defined]


@pytest.fixture
def hostile(tmp_path: Path, workspace: Workspace) -> Path:
    """A recipe whose data have a column's name, labels and texts that would steer a terminal."""
    rows = [
        {"text": f"the cat {TITLE} {i}", "label": f"good{TITLE}" if i % 2 else "bad\u202e", TITLE: "x"}
        for i in range(16)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    return workspace.recipe("hostile", data__path=str(data), output_dir=str(tmp_path / "run"), training__max_steps=1)


def test_labels_columns_and_texts_are_shown(hostile: Path, tmp_path: Path, cli) -> None:
    for arguments in (["inspect", hostile], ["train", hostile], ["validate", hostile, f"{TITLE}=1"]):
        done = cli(*arguments)
        assert not set("\x1b\x07\u202e") & set(done.out + done.err)
        assert "\\u001b" in done.out + done.err
    data = cli("predict", tmp_path / "run", "--input", tmp_path / "rows.jsonl").out
    assert {json.loads(line)["prediction"] for line in data.splitlines()} <= {f"good{TITLE}", "bad\u202e"}
    page = tmp_path / "page.html"
    cli("inspect", hostile, "--html", page)
    assert not set("\x1b\x07\u202e") & set(page.read_text(encoding="utf-8"))


def test_a_terminal_gets_the_colours_of_rich_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.text import Text

    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        with shown_streams():
            console = safe_console()
            console.print(Text(f"label {TITLE}", style="bold red"))
            print(TITLE, file=data_stream())
            print("\u202e")
            sys.stdout.flush()
    seen = b""
    with suppress(OSError):  # the other end is closed: what was written comes in pieces, then an error
        while piece := os.read(ours, 4096):
            seen += piece
    os.close(ours)
    text = seen.decode()
    assert "\x1b[1;31m" in text
    assert "\x1b]" not in text and "\u202e" not in text
    assert text.count("\\u001b]0;title") == 2 and "\\u202e" in text


def test_a_pipe_gets_json_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    with shown_streams():
        print_json({"a": "\u202e\x9b"})
        print("\u202e")
    assert capfd.readouterr().out == '{\n  "a": "\u202e\x9b"\n}\n\\u202e\n'


def test_lists_of_names_and_reasons_are_short() -> None:
    assert (all_of(["a"]), all_of(["a", "b", "c"]), all_of(["1", "2"], "or")) == ("a", "a, b and c", "1 or 2")
    assert (some_of([], 2), some_of([1, 2], 2), some_of("abcd", 2)) == ("", "1, 2", "a, b and 2 more")
    assert [first_line(error) for error in (ValueError("\n why \nhow"), EOFError())] == ["why", "EOFError"]
