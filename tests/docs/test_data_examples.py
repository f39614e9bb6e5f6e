"""Each example row of docs/data.md is prepared by the data package, in the format that its heading names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.recognition.format_table import BY_NAME, FORMATS
from peftcli.tasks.task_table import TASKS
from tests.data.tools import chat_tokenizer, ready, write_jsonl
from tests.docs.pages import text_of


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Return (format, row) of every example."""
    section = text_of("docs/data.md").partition("## Formats")[2].partition("\n## What is learnt")[0]
    found = []
    for part in re.split(r"^### ", section, flags=re.M)[1:]:
        name = part.split("\n", 1)[0].strip()
        found += [(name, json.loads(body)) for body in re.findall(r"^```json\n(.*?)^```", part, flags=re.M | re.S)]
    return found


EXAMPLES = examples()


def test_every_format_has_an_example() -> None:
    assert {name for name, _ in EXAMPLES} | {"folders"} == {known.name for known in FORMATS}


@pytest.mark.parametrize(("name", "row"), EXAMPLES, ids=[f"{name}-{at}" for at, (name, _) in enumerate(EXAMPLES)])
def test_an_example_is_recognised_and_prepared(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    others = [row]
    label = row.get("label")
    if isinstance(label, str):
        others.append({**row, "label": "another"})  # one class is nothing to learn
    elif isinstance(label, list):
        others.append({**row, "label": label[:1]})
    elif isinstance(label, bool):
        others.append({**row, "label": not label})
    elif label is not None:
        others.append({**row, "label": label - 1})
    for task in (task for task, made in TASKS.items() if made.info.rows in BY_NAME[name].makes):
        if name == "pretokenized" and task != "causal_lm":
            continue  # the example's labels are those of a causal model
        file = write_jsonl(tmp_path / f"{task}.jsonl", others * 3)
        prepared = ready(chat_tokenizer(), file, task, cache_dir=str(tmp_path / "cache"))
        assert prepared.report.format == name
        assert len(prepared.train) == len(others) * 3


def test_the_kinds_of_label(tmp_path: Path) -> None:
    kinds = []
    for number, (name, row) in enumerate(EXAMPLES):
        if name == "classification":
            second = {list: row["label"][:1]} if isinstance(row["label"], list) else {str: "no", float: 1.5}
            rows = [row, {**row, "label": second[type(row["label"])]}] * 2
            file = write_jsonl(tmp_path / f"{number}.jsonl", rows)
            made = ready(chat_tokenizer(), file, "sequence_classification", cache_dir=str(tmp_path / "cache"))
            kinds.append(made.labels.problem if made.labels else None)
    assert kinds == ["single_label", "single_label", "multi_label", "regression"]


def test_class_folders(tmp_path: Path) -> None:
    for label in ("good", "bad"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "data" / label / f"{number}.txt").write_text(f"a text {number}", encoding="utf-8")
    task = "sequence_classification"
    prepared = ready(chat_tokenizer(), tmp_path / "data", task, cache_dir=str(tmp_path / "cache"))
    assert prepared.report.format == "folders"
    assert prepared.labels is not None
    assert prepared.labels.names == ("bad", "good")
