"""Standard streams that are closed, full, without a reader, or without Unicode end no command as a bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peftcli.console.streams import ESCAPE

ROOT = Path(__file__).resolve().parents[2]


def peft(*arguments: object, before: str = "", streams: str = "") -> subprocess.CompletedProcess[str]:
    """Run `before peft ARGUMENTS streams` in a shell."""
    typed = " ".join([before, sys.executable, "-m", "peftcli", *map(str, arguments), streams])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", typed],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a recipe with letters beyond ASCII that `peft validate` refuses by name."""
    tree = {"model": {"name_or_path": "m"}, "task": "causal_lm", "data": {"path": "Zürich-\U0001f600.jsonl"}}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return file


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&- <&-", "| true", "2>/dev/full", "2>&-"])
def test_nobody_listens(streams: str) -> None:
    done = peft("schema", streams=streams)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_the_disk_of_the_output_is_full() -> None:
    done = peft("schema", streams=">/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output cannot be written: No space left on device\n")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_its_letters(encoding: str, recipe: Path) -> None:
    environment = f"PYTHONIOENCODING={encoding} LC_ALL=C"
    done = peft("validate", recipe, before=environment)
    assert done.returncode == 2 and "rich-\\U0001f600" in done.stderr and "Traceback" not in done.stderr
    done = peft("validate", recipe, "--json", before=environment)
    assert "Zürich-\U0001f600" in str(json.loads(done.stdout))


def test_json_stays_json_in_every_encoding() -> None:
    text = json.dumps("Zürich \U0001f600", ensure_ascii=False)
    assert json.loads(text.encode("ascii", ESCAPE)) == "Zürich \U0001f600"


def test_an_error_is_told_where_standard_output_is_closed(recipe: Path) -> None:
    done = peft("validate", recipe, streams=">&-")
    assert done.returncode == 2 and "Zürich" in done.stderr
