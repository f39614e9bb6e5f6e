"""Preferences as single answers: every form of rows, what is refused, and which answer stands behind which prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.console.inspect_view import render
from peftcli.data.inspection import inspect_data
from peftcli.data.loss_rows import as_loss_reads
from peftcli.data.prepare import prepare
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.single_answers import SingleAnswers
from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.preflight import check_surroundings
from peftcli.recipe.load_recipe import recipe_from_data
from peftcli.recipe.schema import DataSpec, Recipe
from tests.recipes import write_jsonl
from tests.tiny import tiny_tokenizer

ASKED, GOOD = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "green"}
SHARE = [{"from": "human", "value": "the cat"}, {"from": "gpt", "value": "green"}]
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "the cat", "completion": "green", "label": True},
    "messages": {"prompt": [ASKED], "completion": [GOOD], "label": True},
    "a conversation": {"messages": [ASKED, GOOD], "label": True},
    "a whole completion": {"completion": [ASKED, GOOD], "label": 1},
    "both whole": {"prompt": [ASKED], "completion": [ASKED, GOOD], "label": "true"},
    "LLaMA-Factory's": {"conversations": SHARE, "kto_tag": True},
    "LLaMA-Factory's instructions": {"instruction": "the cat", "input": "", "output": "green", "kto_tag": True},
    "axolotl's": {"question": "the cat", "completion": "green", "label": True},
}
BAD = {"prompt": "the dog", "completion": "red and bad", "label": False}


def prepared(tmp_path: Path, rows: list[dict[str, Any]], loss: str = "kto", **spec: Any) -> PreparedData:
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = DataSpec(**{"path": str(file), "val_set_size": 0, "cache_dir": str(tmp_path / "cache"), **spec})
    recipe = Recipe(
        model={"name_or_path": "tiny"}, task="preference", method={"name": "lora"}, training={"loss_type": loss}
    )
    made = prepare(data, "preference", tiny_tokenizer(), seed=0)
    return as_loss_reads(made, recipe, data.max_length)


def answers(rows: Any) -> list[tuple[str, str]]:
    """Return prompt and answer of each row, as text."""
    tokenizer, out = tiny_tokenizer(), []
    for row in rows:
        learnt = np.asarray(row.labels) != -100
        out.append(tuple(tokenizer.decode(row.input_ids[part]).strip() for part in (~learnt, learnt)))
    return out


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_same_answer(tmp_path: Path, form: str) -> None:
    """A file has rows of one form; the bad one is the good one with another label and answer."""
    text = json.dumps(FORMS[form]).replace("green", "red").replace("true", "false").replace(": 1}", ": 0}")
    bad = json.loads(text)
    data = prepared(tmp_path, [FORMS[form], bad])
    assert isinstance(data.train, SingleAnswers) and data.train.good.tolist() == [True, False]
    (asked, green), (_, red) = answers(data.train)
    assert asked.endswith("the cat") or "cat" in asked
    assert green.startswith("green") and red.startswith("red") and "cat" not in green


def test_a_pair_is_two_answers(tmp_path: Path) -> None:
    pairs = [
        {"prompt": "the cat", "chosen": "green", "rejected": "red"},
        {"prompt": "the dog", "chosen": "blue", "rejected": "bad"},
    ]
    singles = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    one, other = prepared(tmp_path, pairs), prepared(tmp_path, singles)
    assert one.report.train_rows == other.report.train_rows == len(one.train) == 4
    assert isinstance(one.train, SingleAnswers) and isinstance(other.train, SingleAnswers)
    for mine, theirs in ((one.train, other.train), (one.train.others, other.train.others)):
        assert answers(mine) == answers(theirs) and mine.lengths.tolist() == theirs.lengths.tolist()
    # each prompt with the answer of the same kind to the prompt before
    assert [answer.removesuffix("</s>").strip() for _, answer in answers(one.train.others)] == [
        "blue", "bad", "green", "red"
    ]  # fmt: skip


def test_a_mismatched_sequence_is_cut_to_the_limit_and_keeps_a_token_of_its_answer(tmp_path: Path) -> None:
    rows = [
        {"prompt": "the cat " * 5, "completion": "a", "label": True},
        {"prompt": "b", "completion": "red and bad " * 4, "label": False},
    ]
    data = prepared(tmp_path, rows, max_length=32)
    others = data.train.others
    assert others.lengths.tolist() == [len(row.input_ids) for row in others] and max(others.lengths) == 32
    assert all((np.asarray(row.labels) != -100).any() for row in others)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no label": ({"prompt": "a", "completion": "b"}, "no column 'label'"),
    "null label": ({"prompt": "a", "completion": "b", "label": None}, "null"),
    "odd label": ({"prompt": "a", "completion": "b", "label": "maybe"}, "neither true nor false"),
    "empty": ({"prompt": "a", "completion": " ", "label": True}, "'completion' is empty"),
    "no prompt": ({"prompt": "", "completion": "b", "label": True}, "no prompt"),
    "no answer": ({"prompt": [ASKED], "completion": [ASKED], "label": True}, "not an answer"),
    "long prompt": ({"prompt": "the cat " * 60, "completion": "b", "label": True}, "the prompt alone takes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_with_reason_and_remedy(tmp_path: Path, name: str) -> None:
    row, reason = BROKEN[name]
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, [FORMS["texts"], row, BAD], max_length=64)
    assert "rows.jsonl:2" in str(caught.value) and reason in str(caught.value)
    skipping = prepared(tmp_path, [FORMS["texts"], row, BAD], max_length=64, on_error="skip")
    assert len(skipping.train) == 2 and skipping.report.skipped[0]["row"] == 2


def test_answers_of_one_kind_and_losses_of_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all 2 training rows are good answers(.|\n)*label: false"):
        prepared(tmp_path, [FORMS["texts"], {**BAD, "label": True}])
    with pytest.raises(UserError, match=r"rows.jsonl:1(.|\n)*loss sigmoid compares two(.|\n)*loss_type: kto"):
        prepared(tmp_path, [FORMS["texts"], BAD], "sigmoid")
    with pytest.raises(UserError, match="no format fits the columns prompt, completion"):
        prepared(tmp_path, [{"prompt": "a", "completion": "b"}])


def test_another_task_says_what_the_file_looks_like(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "rows.jsonl", [FORMS["texts"], BAD]))
    spec = {"path": file, "val_set_size": 0, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"says which answers are bad(.|\n)*loss_type: kto"):
        prepare(DataSpec(**spec), "causal_lm", tiny_tokenizer(), seed=0)
    wanted = prepare(DataSpec(**spec, columns={"completion": "completion"}), "causal_lm", tiny_tokenizer(), seed=0)
    assert len(wanted.train) == 2


def test_unequal_numbers_have_a_note_on_the_weights(tmp_path: Path) -> None:
    rows = [{**FORMS["texts"], "completion": f"green {word}"} for word in ("cat", "dog", "red", "blue")]
    assert any(
        "desirable_weight between 0.25 and 0.333" in note for note in prepared(tmp_path, [*rows, BAD]).report.notes
    )


def test_an_inspection_says_which_answers_are_bad_and_which_rows_disagree(tmp_path: Path) -> None:
    rows = [FORMS["texts"], BAD, {**FORMS["texts"], "label": False}]
    found = inspect_data(prepared(tmp_path, rows), tiny_tokenizer(), "preference", rows=3, max_length=64)
    assert [example.label for example in found.examples] == ["good answer", "bad answer", "bad answer"]
    assert found.contradictions == 1 and found.contradicting_pairs[0][1].endswith("rows.jsonl:3")
    learnt = render(found.examples[1], colours=False).plain
    assert "\u27eared and bad" in learnt and not learnt.startswith("\n")


@pytest.mark.parametrize("loss", [None, "kto"])
def test_rows_that_need_the_loss_are_told_apart_before_training(tmp_path: Path, loss: str | None) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [FORMS["texts"], BAD])
    data: dict[str, Any] = {"model": {"name_or_path": "tiny"}, "task": "preference", "data": {"path": str(file)},
                            "method": {"name": "lora"}, "training": {"loss_type": loss}}  # fmt: skip
    problems = [problem.message for problem in check_surroundings(recipe_from_data("r.yaml", data, NAMES), NAMES)]
    assert any("need the loss kto" in message for message in problems) == (loss is None)
