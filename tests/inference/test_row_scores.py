"""Scores by row: their totals are what `peft eval` prints, for every metric, whatever rows share a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.metrics import compute_metrics
from peftcli.inference.row_scores import RowScores, score_base, score_rows
from peftcli.tasks.metric_table import METRICS
from peftcli.training.run import train
from tests.recipes import WORDS, chat_rows, class_rows, write_jsonl


def rows_of(kind: str) -> tuple[str, str, list[dict]]:
    """Return a model family, a task and 24 rows of different lengths."""
    if kind == "multi_label":
        rows = [{**row, "labels": [row.pop("label"), "other"][: 1 + i % 2]} for i, row in enumerate(class_rows(24))]
        return "bert", "sequence_classification", rows
    if kind == "regression":
        return "bert", "sequence_classification", [{**row, "label": i % 7 / 4} for i, row in enumerate(class_rows(24))]
    if kind == "tags":
        rows = [{"tokens": ["the", *[WORDS[i % 12]] * (1 + i % 4)], "tags": ["O", *["B-X", "I-X"][: 1 + i % 2] * 2][
            : 2 + i % 4]} for i in range(24)]  # fmt: skip
        return "bert", "token_classification", [{**row, "tags": (row["tags"] + ["O"] * 9)[: len(row["tokens"])]}
                                                for row in rows]  # fmt: skip
    if kind == "seq2seq":
        return "t5", "seq2seq_lm", [{"input": row["prompt"], "target": row["completion"]} for row in chat_rows(24)]
    return (
        ("gpt2", "causal_lm", chat_rows(24)) if kind == "text" else ("bert", "sequence_classification", class_rows(24))
    )


KINDS = ("single_label", "multi_label", "regression", "tags", "text", "seq2seq")


@pytest.mark.parametrize("kind", KINDS)
def test_the_totals_are_those_of_an_evaluation(recipe, kind: str) -> None:
    family, task, rows = rows_of(kind)
    names = list(METRICS["text" if kind == "seq2seq" else kind])
    loaded = recipe(family, task, rows, training__metrics=names, data__val_set_size=10, training__max_steps=2,
                    training__max_new_tokens=4, training__per_device_eval_batch_size=4)  # fmt: skip
    run = Path(train(loaded).output_dir)
    known, scores = evaluate_run(run), score_rows(run)
    assert len(scores) == known["eval_rows"] == 10 and scores.seed == loaded.recipe.seed
    assert sum(scores.loss_sums) / sum(scores.counts) == pytest.approx(known["eval_loss"], rel=1e-6)
    if scores.right is not None:
        assert sum(scores.right) / sum(scores.counts) == pytest.approx(known["eval_token_accuracy"])
    assert (scores.right is not None) == ("token_accuracy" in names)
    for name in names:
        for value, found in compute_metrics([name], scores.kind, scores.predictions, scores.references).items():
            assert found == pytest.approx(known[f"eval_{value}"], nan_ok=True), name
    assert RowScores.from_dict(json.loads(json.dumps(scores.as_dict()))) == scores

    alone = json.loads(json.dumps(scores.as_dict()))  # each row in a batch of its own
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("per_device_eval_batch_size: 4", "per_device_eval_batch_size: 1"))
    again = score_rows(run).as_dict()
    assert "eval_batch_size: 1" in (run / "recipe.yaml").read_text()
    assert again.pop("loss_sums") == pytest.approx(alone.pop("loss_sums"), rel=1e-5)
    general, before = again.pop("general"), alone.pop("general")
    if kind == "text":
        assert general["loss_sums"] == pytest.approx(before["loss_sums"], rel=1e-5) and len(general["counts"]) == 100
    if kind != "regression":
        assert again == alone


def test_rows_are_known_again_and_others_are_not_taken_for_them(recipe, tmp_path: Path) -> None:
    loaded = recipe("gpt2", data__val_set_size=4, training__max_steps=1)
    base = score_base(loaded)
    run = Path(train(loaded).output_dir)
    own = score_rows(run)
    assert own.identity == base.identity and own.places == base.places
    assert base.seed is None  # nothing of the base is drawn
    assert base.loss_sums != own.loss_sums
    other = score_base(recipe("gpt2", name="other", data__val_set_size=4, seed=1))
    assert other.identity != own.identity
    text = write_jsonl(tmp_path / "mine.jsonl", [{"text": "the cat on the mat"}])
    mine = score_base(loaded, general_text=text).general
    assert mine is not None and mine.text == str(text) and len(mine.counts) == 1
    assert base.general is not None and mine.identity != base.general.identity
    assert score_rows(run, checkpoint="last").identity == own.identity


def test_a_new_head_is_drawn_by_the_seed(recipe, tmp_path: Path) -> None:
    held_out = {"path": str(write_jsonl(tmp_path / "held-out.jsonl", class_rows(6)))}
    made = [
        recipe("bert", "sequence_classification", class_rows(24), name=f"s{seed}", seed=seed, data__validation=held_out)
        for seed in (0, 1)
    ]
    first, second = map(score_base, made)
    assert (first.seed, second.seed) == (0, 1) and first.identity == second.identity
    assert first.loss_sums != second.loss_sums


def test_scores_of_another_version_are_refused() -> None:
    scores = RowScores("text", 0, {"": 1}, "x", ["a"], [[0, 1]], [1.0], [1.0])
    for wrong in ({**scores.as_dict(), "version": 99}, {"version": 1}, {**scores.as_dict(), "more": 1}):
        with pytest.raises(UserError, match="remove the file"):
            RowScores.from_dict(wrong)
    assert replace(scores, seed=1) != scores


def test_scores_of_version_1_hold_but_for_texts() -> None:
    """Texts of that version went on behind the end of a turn."""
    numbers = RowScores("classes", 0, {"": 1}, "x", ["a"], [[0, 1]], [1.0], [1.0], None, [2], [2], version=1)
    texts = replace(numbers, kind="text", predictions=["yes"], references=["yes"])
    assert RowScores.from_dict(numbers.as_dict()) == numbers
    assert RowScores.from_dict(replace(texts, version=2).as_dict()).predictions == ["yes"]
    with pytest.raises(UserError, match="remove the file"):
        RowScores.from_dict(texts.as_dict())
