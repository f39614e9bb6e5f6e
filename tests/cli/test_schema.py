"""`peft schema`: one JSON document, on standard output or in a file."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from tests.command_line import Cli


def test_prints_a_schema(cli: Cli) -> None:
    done = cli("schema")
    assert (done.code, done.err) == (0, "")
    jsonschema.Draft202012Validator.check_schema(done.json)


def test_writes_a_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "recipe.schema.json"
    done = cli("schema", "-o", file)
    assert (done.code, done.out) == (0, "")
    assert json.loads(file.read_text(encoding="utf-8"))["title"] == "peftcli recipe"


def test_cannot_write(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("schema", "-o", tmp_path / "file" / "x.json")
    assert done.code == 2
    assert "cannot be written" in done.err and "Traceback" not in done.err
