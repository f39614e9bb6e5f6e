"""One question for a misspelt name, wherever it was written."""

from __future__ import annotations

import re
from pathlib import Path

from peftcli.suggestions import did_you_mean, nearest, nearest_files


def test_the_most_similar_names_come_first() -> None:
    assert nearest("lorra", ["ia3", "lora", "qlora"], most=2) == ["lora", "qlora"]
    assert nearest("lorra", ["ia3", "vera"], cutoff=0.9) == []


def test_a_suffix_makes_no_file_similar() -> None:
    assert nearest_files("lora.yaml", ["bad.yaml", "recipe.yaml", "lorra.yaml", "qlora.yaml"]) == [
        "qlora.yaml",
        "lorra.yaml",
    ]
    assert nearest_files("train.jsonl", ["n4.jsonl", "trains.jsonl"]) == ["trains.jsonl"]


def test_a_question_with_what_follows_it() -> None:
    assert (
        did_you_mean(["lora", Path("runs/lora")], "all: lora, vera")
        == "did you mean lora or runs/lora? all: lora, vera"
    )
    assert did_you_mean([], "all: lora, vera") == "all: lora, vera"
    assert did_you_mean([]) == ""


def test_nobody_else_compares_spellings() -> None:
    package = Path(__file__).resolve().parent.parent / "peftcli"
    files = sorted(package.rglob("*.py"))
    assert len(files) > 20
    users = [path.name for path in files if re.search("^(import|from) difflib", path.read_text(encoding="utf-8"), re.M)]
    assert users == ["suggestions.py"]
