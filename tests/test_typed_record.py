"""A JSON file gives a record, or a message with its name and the key; never another exception."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peftcli.errors import UserError
from peftcli.typed_record import LARGEST, read_json, read_object, read_record


@dataclass
class Row:
    step: int
    loss: float | None = None
    shape: tuple[int, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


def test_a_record_and_keys_of_a_later_version(tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_text('{"step": 3, "loss": 2, "shape": [1, 2], "more": {"a": [NaN]}, "later": true}', encoding="utf-8")
    row = read_record(Row, file)
    assert (row.step, row.loss, row.shape, list(row.more)) == (3, 2.0, (1, 2), ["a"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "row.json:1: is not JSON"),
        (b'{"step": 1,\n "loss": }', "row.json:2: is not JSON"),
        (b'{"step": "\xff"}', "row.json: is damaged: byte 10 is not UTF-8"),
        (b"[" * 100_000, "row.json: is not readable: its values are nested too deeply"),
        (b'{"step": ' + b"9" * 5000 + b"}", "row.json: is not readable"),
        (b"[1]", "row.json: holds a JSON array; expected an object"),
        (b"null", "row.json: holds a JSON null"),
        (b"{}", "row.json: step: field required"),
        (b'{"step": "3"}', "row.json: step: input should be a valid integer"),
        (b'{"step": true}', "row.json: step: input should be a valid integer"),
        (b'{"step": 1, "shape": [1, null]}', "row.json: shape.1: input should be a valid integer"),
        (b'{"step": 1, "more": []}', "row.json: more: input should be"),
    ],
)
def test_what_is_wrong_is_named(text: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_bytes(text)
    with pytest.raises(UserError) as caught:
        read_record(Row, file, suggestion="copy it again")
    assert says in str(caught.value)
    assert "copy it again" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_object(tmp_path)
    large = tmp_path / "large.json"
    with open(large, "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="has at most"):
        read_json(large)
