"""YAML as a recipe means it: values of the 1.2 core schema, lines of every key, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from peftcli.recipe.yaml.yaml_errors import YamlProblem
from peftcli.recipe.yaml.yaml_lines import MAX_DEPTH, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("3.", 3.0),
        ("7", 7),
        ("-7", -7),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("n", "n"),
        ("null", None),
        ("~", None),
        ("", None),
        ("None", "None"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ('"\\ud83d\\ude00"', "\U0001f600"),  # as JSON writes it
        ("!!str 12", "12"),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}", {}).data["key"]
    assert read == value
    assert type(read) is type(value)


def test_every_key_and_element_has_its_line() -> None:
    text = "a:\n  b: 1\n\n  c:\n    - x\n    - d: 2\n      e: [3,\n          4]\n"
    assert parse_yaml(text, {}).lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "d"): 6,
        ("a", "c", 1, "e"): 7,
        ("a", "c", 1, "e", 0): 7,
        ("a", "c", 1, "e", 1): 8,
    }


def test_alias_is_a_copy() -> None:
    data = parse_yaml("a: &x {r: 1}\nb: *x\n", {}).data
    data["b"]["r"] = 2
    assert data == {"a": {"r": 1}, "b": {"r": 2}}


def test_duplicate_keys_are_remarked_at_the_second() -> None:
    (remark,) = parse_yaml("a: 1\nb: 2\na: 3\n", {}).remarks
    assert (remark.key, remark.line) == (("a",), 3)
    assert "first on line 1" in remark.message


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (BOMB, 5, "values once aliases"),
        ("a: &x " + "long " * 20_000 + "\nb: [" + "*x, " * 99 + "]", 2, "values once aliases"),
        ("a: &x\n  b: *x\n", 2, "refers to itself"),
        ("a: *nothing\n", 1, "not defined"),
        ("a: *.csv\n", 1, "starts with"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, "merge key"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "tag"),
        ("a: !mine 3\n", 1, "tag"),
        ("{[1, 2]: 3}\n", 1, "key is not a plain name"),
        ("a:\n\tb: 1\n", 2, "tab"),
        ("a: 1\n b: 2\n", 2, "indentation"),
        ("a: b: c\n", 1, "second ':'"),
        ("a: [1, 2\nb: 3\n", 1, "not closed"),
        ("a: 'text\n", 1, "quoted text that is not closed"),
        ("a: 1\nb\n", 2, "without ':'"),
        ("a: \x07\n", 1, "control character"),
        (f"a: {'9' * 5000}\n", 1, "digits"),
        ("x: " + "[" * (MAX_DEPTH + 2), 1, "deep"),
        ("x: " + "[" * 20_000, 1, "deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(60)), None, "deep"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_refused_with_line_and_sentence(text: str, line: int | None, words: str) -> None:
    with pytest.raises(YamlProblem, match=words) as caught:
        parse_yaml(text, {})
    assert line is None or caught.value.line == line
    assert caught.value.suggestion


def test_a_complaint_without_a_sentence_of_its_own_has_a_remedy_too() -> None:
    with pytest.raises(YamlProblem, match="not YAML: ") as caught:
        parse_yaml("a: %\nb: |5x\n  c\n", {})
    assert caught.value.suggestion


def test_empty_text_is_nothing() -> None:
    assert parse_yaml("# only a comment\n", {}).data is None
