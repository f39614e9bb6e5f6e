"""Rows of preferences: which tokens of both answers are compared, how a pair is cut, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepare import prepare, prepare_for_prediction
from peftcli.data.prepared_data import PreparedData
from peftcli.data.rows.row_set import sequences_of
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec
from tests.tiny import tiny_tokenizer

ASKED, GOOD, BAD = ({"role": "user", "content": "the cat"}, {"role": "assistant", "content": "green"},
                    {"role": "assistant", "content": "red and bad"})  # fmt: skip
SHARE = {"from": "human", "value": "the cat"}


def prepared(tmp_path: Path, rows: list[dict[str, Any]], task: str = "preference", **spec: Any) -> PreparedData:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    block = {"path": str(file), "val_set_size": 0, "cache_dir": str(tmp_path / "cache"), **spec}
    return prepare(DataSpec(**block), task, tiny_tokenizer(), seed=0)


def sides(data: PreparedData, number: int = 0) -> list[tuple[str, str]]:
    """Return prompt and answer of both sequences of a row, as text."""
    tokenizer, out = tiny_tokenizer(), []
    for side in sequences_of(data.train[number]):
        learnt = np.asarray(side.labels) != -100
        out.append(tuple(tokenizer.decode(side.input_ids[part]) for part in (~learnt, learnt)))
    return out


def test_pairs_that_their_scores_do_not_put_in_order_are_counted(tmp_path: Path) -> None:
    scores = [(5, 1), (3, 3), (2.5, 2.5), (1, 4), (None, 4), ("high", "low")]
    rows = [
        {"prompt": f"the cat {n}", "chosen": "green", "rejected": "red", "score_chosen": one, "score_rejected": other}
        for n, (one, other) in enumerate(scores)
    ]
    notes = prepared(tmp_path, rows[:5]).report.notes
    assert "2 of the pairs are ties: both answers have the same score" in notes
    assert "in 1 of the pairs the rejected answer has the higher score: are the columns swapped?" in notes
    assert not [note for note in notes if "not used" in note]
    assert not [note for note in prepared(tmp_path, rows[5:]).report.notes if "score" in note]


FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "the cat", "chosen": "green", "rejected": "red and bad"},
    "messages": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "conversations": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "LLaMA-Factory's": {"conversations": [SHARE], "chosen": {"from": "gpt", "value": "green"},
                        "rejected": {"from": "gpt", "value": "red and bad"}},
    "LLaMA-Factory's instructions": {"instruction": "the cat", "chosen": "green", "rejected": "red and bad"},
    "axolotl's": {"messages": [ASKED], "chosen": GOOD, "rejected": BAD},
    "turns alone": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_same_pair(tmp_path: Path, form: str) -> None:
    (one, green), (other, red) = sides(prepared(tmp_path, [FORMS[form]]))
    assert one == other and "cat" in one
    assert green.strip().startswith("green") and red.strip().startswith("red and bad")


def test_answers_before_the_pair_part_are_not_compared(tmp_path: Path) -> None:
    before = [ASKED, {"role": "assistant", "content": "story"}, {"role": "user", "content": "and"}]
    (one, green), (other, _) = sides(prepared(tmp_path, [{"chosen": [*before, GOOD], "rejected": [*before, BAD]}]))
    assert one == other and "story" in one and "story" not in green


def test_a_pair_that_is_too_long_is_cut_alike(tmp_path: Path) -> None:
    row = {"prompt": "the cat " * 6, "chosen": " green", "rejected": " red and bad"}
    whole, cut = prepared(tmp_path, [row]), prepared(tmp_path, [row], max_length=24)
    (full, _), _ = sides(whole)
    (one, green), (other, red) = sides(cut)
    assert one == other and full.endswith(one[5:]) and len(one) < len(full)
    assert (green, red) == tuple(answer for _, answer in sides(whole))
    assert max(len(side.input_ids) for side in sequences_of(cut.train[0])) == 24
    assert cut.report.counts.truncated == 1
    with pytest.raises(UserError):  # it would be the only row
        prepared(tmp_path, [row], max_length=24, overflow="drop")


def test_a_pair_whose_prompt_alone_is_too_long_is_dropped_where_long_rows_are(tmp_path: Path) -> None:
    rows = [FORMS["texts"], {"prompt": "the cat " * 60, "chosen": "b", "rejected": "c"}]
    assert prepared(tmp_path, rows, max_length=64, overflow="drop").report.counts.dropped == 1


@pytest.mark.parametrize(("good", "bad"), [('{"a": 1}', '{"a": 2}'), ("[1, 2]", "[]"), ('[{"from": "a"}]', "{'b'}")])
def test_answers_in_json_are_texts_and_messages_in_json_are_messages(tmp_path: Path, good: str, bad: str) -> None:
    found = sides(prepared(tmp_path, [{"prompt": "[1, 2]", "chosen": good, "rejected": bad}]))
    assert found == [("[1, 2]", f"{good}</s>"), ("[1, 2]", f"{bad}</s>")]
    given = {name: json.dumps(turns) for name, turns in FORMS["messages"].items()}
    assert sides(prepared(tmp_path, [given])) == sides(prepared(tmp_path, [FORMS["messages"]]))


def test_a_template_makes_the_prompt(tmp_path: Path) -> None:
    row = {"topic": "cat", "chosen": "green", "rejected": "red"}
    assert sides(prepared(tmp_path, [row], template="the {topic}"))[0][0] == "the cat"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "nothing to prefer"),
    "empty": ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' is empty"),
    "empty message": ({"chosen": [ASKED, GOOD], "rejected": [ASKED, {**BAD, "content": ""}]}, "is empty"),
    "no prompt": ({"prompt": "", "chosen": "b", "rejected": "c"}, "no prompt"),
    "mixed": ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "one of chosen and rejected is a text"),
    "no turn": ({"chosen": [ASKED, GOOD], "rejected": ["red"]}, "message 1 of 'rejected' is not an object"),
    "no common beginning": ({"chosen": [GOOD], "rejected": [BAD]}, "do not begin with the same turn"),
    "ends with a question": ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD, ASKED]}, "not an answer"),
    "long prompt": ({"prompt": "the cat " * 60, "chosen": "b", "rejected": "c"}, "the prompt alone takes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pair_is_named_with_row_reason_and_remedy(tmp_path: Path, name: str) -> None:
    row, reason = BROKEN[name]
    good = FORMS["conversations" if "prompt" not in row else "texts"]
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, [good, row], max_length=64)
    assert "rows.jsonl:2" in str(caught.value) and reason in str(caught.value)
    skipping = prepared(tmp_path, [good, row], max_length=64, on_error="skip")
    assert len(skipping.train) == 1 and skipping.report.skipped[0]["row"] == 2


def test_another_task_says_what_the_file_looks_like(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"look like preferences.*\n.*task: preference"):
        prepared(tmp_path, [FORMS["texts"]], "causal_lm")
    wanted = prepared(tmp_path, [FORMS["texts"]], "causal_lm", columns={"completion": "chosen"})
    assert len(wanted.train) == 1


def test_prompts_of_every_format_of_texts_can_be_answered(tmp_path: Path) -> None:
    for row in (FORMS["texts"], FORMS["conversations"], {"prompt": "the cat"}, {"messages": [ASKED]}):
        file = tmp_path / "asked.jsonl"
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        spec = DataSpec(path=str(file), cache_dir=str(tmp_path / "cache"))
        rows = prepare_for_prediction(str(file), spec, "preference", tiny_tokenizer())
        assert len(sequences_of(rows[0])) == 1
        assert "cat" in tiny_tokenizer().decode(rows[0].input_ids)
        assert "green" not in tiny_tokenizer().decode(rows[0].input_ids)
