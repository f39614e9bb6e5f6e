"""JSON files, read element by element by whichever of ijson's parsers there is."""

from __future__ import annotations

import json
from pathlib import Path

import ijson
import pytest

from peftcli.data.read import json_files
from peftcli.data.read.json_files import read_json
from peftcli.data.read.records import BadRow, Record
from peftcli.errors import UserError
from tests.data.read.reading import rows, values

PARSERS = pytest.mark.parametrize("parser", [ijson.backend, "python"])
"""ijson's parser in C, where there is one, and the one in Python, which is there always."""


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": "[{,"}]',
        '{"version": "1", "meta": {"x": [1]}, "data": [{"a": 1}, {"a": "[{,"}]}',
        '{"a": 1}\n{"a": "[{,"}\n',
        '\n [\n{"a": 1}\n,\n{"a": "[{,"}]\n',
    ],
    ids=["list", "object", "lines", "spaced"],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_json_is_read_element_by_element(
    tmp_path: Path, text: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "BLOCK", block)
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert values(path) == [(1, {"a": 1}), (2, {"a": "[{,"})]


def test_json_with_large_elements_and_characters_on_block_borders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "BLOCK", 5)
    path = tmp_path / "a.json"
    data = [{"text": "é☃😀" * 50, "n": number} for number in range(40)]  # more than the first piece of a file
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    assert [row for _, row in values(path)] == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}\n{"a": 2}]', r":2: broken JSON: "),
        ('[{"a": 1},\n\n{"a": }]', r":3: broken JSON: "),
        ('[{"a": 1},\n{"a": tru}]', r":2: broken JSON: "),
        ('[\n{"a": "\t"}]', r":2: broken JSON: "),
        ('{"a": 1}', "has no list of rows; its keys are a"),
        ("{}", "has no list of rows; its keys are none"),
        ("3", "the file starts with 3"),
        ('"text"', 'the file starts with "text"'),
        ('[{"a": 1}', r":1: broken JSON: the file ends too early"),
        ('[{"a": 1}]\n[{"a": 2}]', r":2: broken JSON: "),
        ('[{"a": 1},\n{"a": NaN}]', r":2: broken JSON: .*\n.*JSON has no NaN and no Infinity: write null"),
        ("[" * 100_000, "row 1 is nested more than 500 levels deep"),
        ('[{"a": 1},\n' + '{"a":' * 600 + "1" + "}" * 600 + "]", "row 2 is nested more than 500 levels deep"),
        ("[" + "9" * 5000 + "]", r":1: broken JSON: "),
    ],
    ids=range(14),
)
@PARSERS
def test_json_errors_have_their_line(
    tmp_path: Path, text: str, message: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ijson, "basic_parse_coro", ijson.get_backend(parser).basic_parse_coro)
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(read_json(path, str(path)))


@PARSERS
def test_json_values_are_those_of_python(tmp_path: Path, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ijson, "basic_parse_coro", ijson.get_backend(parser).basic_parse_coro)
    rows = """[{"int": 3, "minus": -0, "big": 123456789012345678901234567890, "float": 0.1, "more": -1.5E+3,
        "inf": 1e400, "none": null, "yes": true, "no": false, "text": "\\u00e9 \\ud83d\\ude00 \\n", "empty": ""},
        {"lists": [[], [1, [2.0, {}]], [null]], "objects": {"": {"a.b": {"item": [3]}}}}]"""
    expected = json.loads(rows)
    for text in (rows, f'{{"a.b": {{"item": [[1]]}}, "a": null, "item": {rows}, "later": [{{"x": 1}}]}}'):
        path = tmp_path / "a.json"
        path.write_text(text, encoding="utf-8")
        assert [row for _, row in values(path)] == expected
        assert repr([row for _, row in values(path)]) == repr(expected), "numbers are of the same types"


@pytest.mark.parametrize("text", ["", " \n\t\n", "\ufeff", "[]", '{"rows": []}'])
def test_a_json_file_may_hold_no_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert rows(path) == []


def test_json_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """The rows in front of a mistake come, although the file behind them is none of a parser's business yet."""
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n{"a": 2},\nbroken', encoding="utf-8")
    found = read_json(path, "a.json")
    assert [next(found), next(found)] == [Record("a.json", 1, {"a": 1}), Record("a.json", 2, {"a": 2})]
    with pytest.raises(UserError, match=r"a\.json:3: broken JSON"):
        next(found)


def test_json_elements_that_are_no_objects_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, 5]', encoding="utf-8")
    _, bad = list(read_json(path, "a.json"))
    assert isinstance(bad, BadRow) and bad.row == 2 and "is a number" in bad.message
