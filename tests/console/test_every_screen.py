"""Every screen of a run's life on older consoles: an encoding without boxes and spinners, and a wish for no colours."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from peftcli.cli.app import main
from peftcli.console.streams import ESCAPE
from tests.recipes import chat_rows, write_jsonl

AFTER_A_BAR = r"\d:\d\d:\d\d(\x1b\[\d*m)*[A-Za-z]"
"""A result in the line of a bar, whose last column is the time."""
COLOURS = r"\x1b\[[\d;]*(3\d|4\d|9\d)[;m]"


class Screen(io.TextIOWrapper):
    """A terminal as a command finds it: what its encoding lacks is written as `fit_streams` does."""

    def __init__(self, encoding: str) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, errors=ESCAPE, write_through=True)

    def isatty(self) -> bool:
        return True


class Keyboard(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "encoding", "noise"),
    [
        ({}, "cp1252", r"\\u[0-9a-f]{4}"),  # a box, a bar or a spinner that the encoding lacks
        ({"NO_COLOR": "1"}, "utf-8", COLOURS),
    ],
    ids=["cp1252", "NO_COLOR"],
)
def test_nothing_is_noise(
    variables: dict[str, str],
    encoding: str,
    noise: str,
    models: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", **variables}.items():
        monkeypatch.setenv(name, value)
    recipe, run = _recipe(models, tmp_path)
    rows = tmp_path / "rows.jsonl"
    for words in (
        ("--help",),
        ("inspect", recipe),
        ("estimate", recipe),
        ("recommend", recipe),
        ("train", recipe),
        ("eval", run),
        ("predict", run, "--input", rows),
        ("chat", run, "--max-new-tokens", "4"),
        ("merge", run, "-o", tmp_path / "merged"),
        ("export", run, "-o", tmp_path / "exported"),
        ("inspect-adapter", run),
        ("methods",),
        ("recipes", "list"),
        ("eval", tmp_path / "none"),  # an error with its remedy
    ):
        code, text = _seen(monkeypatch, encoding, [str(word) for word in words])
        assert code == (2 if words[-1] == tmp_path / "none" else 0), text
        assert text.strip() and not re.search(noise, text), (words, re.search(f".*{noise}.*", text))
        assert not re.search(AFTER_A_BAR, text), (words, re.search(AFTER_A_BAR, text))


def _recipe(models: Callable[[str], Path], folder: Path) -> tuple[Path, Path]:
    """Write a recipe, and return its file and its run's directory."""
    data = write_jsonl(folder / "rows.jsonl", chat_rows(16))
    tree = {
        "model": {"name_or_path": str(models("gpt2"))},
        "task": "causal_lm",
        "data": {"path": str(data), "val_set_size": 4, "max_length": 48, "cache_dir": str(folder / "cache")},
        "method": {"name": "lora", "r": 4},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4},
        "output_dir": str(folder / "run"),
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file, folder / "run"


def _seen(monkeypatch: pytest.MonkeyPatch, encoding: str, words: list[str]) -> tuple[int, str]:
    """Return the exit code of a command, and what it wrote on the terminal."""
    screen = Screen(encoding)
    code = 0
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", Keyboard("the cat\n/base\n/help\n/set top_p 3\n/exit\n"))
        patched.setattr(sys, "stdout", screen)
        patched.setattr(sys, "stderr", screen)
        try:
            main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        screen.flush()
    return code, screen.raw_bytes.getvalue().decode(encoding)
