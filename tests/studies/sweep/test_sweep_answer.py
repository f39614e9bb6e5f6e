"""What a sweep says: the answer of one line, the importance of keys, the best recipe, and the report."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.studies.report.shell.report_numbers import ScoreScale
from peftcli.studies.report.sweep_markdown import sweep_markdown
from peftcli.studies.sweep.best_recipe import best_recipe_text
from peftcli.studies.sweep.key_importance import importance
from peftcli.studies.sweep.optuna_points import suggest
from peftcli.studies.sweep.space.read_search import search_of_options
from peftcli.studies.sweep.space.search_space import SearchSpace
from peftcli.studies.sweep.sweep_answer import alpha_note, best_answer, edges, ordered_answer
from peftcli.studies.sweep.sweep_record import Sweep, SweepBest, SweepTrial, SweepWinner
from tests.command_line import Workspace, workspace

__all__ = ["workspace"]


def winner(r: int, score: float, verdict: str, difference: float = 0.0) -> SweepWinner:
    about = (difference - 0.01, difference + 0.01)
    return SweepWinner(
        {"method.r": r}, [score], [1], ["run"], score, (score - 0.1, score + 0.1), verdict, difference, about, 0.5
    )


LOSS = ScoreScale("eval_loss", greater_is_better=False)


def space(*texts: str) -> SearchSpace:
    return search_of_options("--search", texts).space


def test_the_smallest_value_that_ties_is_named_whatever_the_order_of_scores() -> None:
    ranks = [
        winner(32, 0.5, "best"),
        winner(8, 0.51, "tied with the best", 0.01),
        winner(16, 0.52, "tied with the best", 0.02),
        winner(64, 0.6, "behind", 0.1),
        winner(4, 0.7, "behind", 0.2),
    ]
    answer = ordered_answer("method.r", ranks, LOSS)
    assert answer.startswith("the smallest method.r that ties with the best is 8 (eval_loss 0.5 (0.4 to 0.6)")
    assert "the best is 32" in answer and "better by 0.01 (0.00 to 0.02)" in answer
    assert "16 ties, too" in answer and "4 and 64 are behind" in answer


def test_scores_and_differences_have_no_more_digits_than_their_intervals_support() -> None:
    best, tied = winner(32, 0.87651234, "best"), winner(8, 0.87656534, "tied with the best", 5.3e-5)
    tied.difference_interval = (-0.00039, 0.0005)
    best.interval = tied.interval = (0.851, 0.902)
    answer = ordered_answer("method.r", [best, tied], LOSS)
    assert "8 (eval_loss 0.88 (0.85 to 0.90);" in answer and "better by 0.0001 (-0.0004 to 0.0005)" in answer
    table = record(None)
    table.winners = [best, replace(tied, verdict="behind", difference_interval=(0.00002, 0.00009))]
    assert "| 0.88 | 0.85 to 0.90 | 1 | behind by 0.00005 (0.00002 to 0.00009) |" in sweep_markdown(table)
    shares = ScoreScale("eval_accuracy", greater_is_better=True)
    assert "better by 1 point (0 to 2)" in ordered_answer(
        "method.r", [winner(8, 0.9, "best"), winner(4, 0.89, "tied with the best", 0.01)], shares
    )


def test_the_best_is_the_answer_where_nothing_smaller_ties() -> None:
    answer = ordered_answer("method.r", [winner(4, 0.5, "best"), winner(8, 0.6, "behind", 0.1)], LOSS)
    assert "ties with the best is 4 (" in answer and "8 is behind" in answer and "better by" not in answer


def test_ties_everywhere_and_nothing_at_all_are_said() -> None:
    ranks = [winner(4, 0.5, "best"), winner(2, 0.5, "tied with the best")]
    assert "none can be told apart" in ordered_answer("method.r", ranks, LOSS)
    assert "no value of method.r finished" in ordered_answer("method.r", [SweepWinner({"method.r": 4})], LOSS)
    assert best_answer([], LOSS) == "no trial finished on fresh seeds"
    assert "tied with it: method.r = 2" in best_answer(ranks, LOSS)


def test_a_best_value_at_the_edge_is_said() -> None:
    searched = space("training.learning_rate=log:1e-4..1e-2", "method.r=4,8,16", "training.optim=sgd,adamw_torch")
    inside = {"training.learning_rate": 1e-3, "method.r": 8, "training.optim": "sgd"}
    assert edges(searched, inside) == []
    found = edges(searched, {"training.learning_rate": 0.0098, "method.r": 4, "training.optim": "sgd"})
    assert [text.split(" = ")[0] for text in found] == ["the best training.learning_rate", "the best method.r"]


def test_what_a_fixed_alpha_does_is_said_where_ranks_are_searched() -> None:
    assert "alpha / r" in (alpha_note(space("method.r=4,8"), 16, 16) or "")
    assert ", the default," in (alpha_note(space("method.r=4,8"), None, 16) or "")
    assert alpha_note(space("method.r=4,8", "method.lora_alpha=4,8"), 16, 16) is None
    assert alpha_note(space("method.r=4,8"), None, None) is None
    assert alpha_note(space("training.weight_decay=0,1"), 16, 16) is None


def test_the_key_that_decides_is_the_important_one_in_either_direction() -> None:
    searched = space("training.learning_rate=log:1e-5..1e-1", "method.r=4,8,16", "training.weight_decay=0..1")
    for sign in (1, -1):
        trials = [
            SweepTrial(number, point, sign * abs(math.log10(point["training.learning_rate"]) + 3), "finished")
            for number, point in enumerate(searched.sample(30, random.Random(1)))
        ]
        shares, why = importance(trials, searched, greater_is_better=sign < 0)
        assert why is None and sum(shares.values()) == pytest.approx(1)
        assert shares["training.learning_rate"] > 0.6
    few, why = importance(trials[:5], searched, greater_is_better=True)
    assert few == {} and "5 trials" in (why or "")
    assert importance(trials, space("method.r=4,8"), greater_is_better=True) == ({}, None)


def test_values_of_a_range_with_a_step_of_many_digits_have_an_importance() -> None:
    searched = space("method.r=4,8,16", "training.weight_decay=0.1234567..1:0.1")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    trials = [SweepTrial(n, suggest(study.ask(), searched), float(n), "finished") for n in range(12)]
    shares, why = importance(trials, searched, greater_is_better=True)
    assert why is None and set(shares) == {"method.r", "training.weight_decay"}


def record(best: SweepBest | None) -> Sweep:
    trials = [
        SweepTrial(0, {"method.r": 4}, 0.41, "finished", "trials/a"),
        SweepTrial(1, {"method.r": 8}, None, "failed", reason="a | pipe and <b>html</b>"),
    ]
    return Sweep(
        "eval_loss", False, {"method.r": "4,8"}, trials, [winner(4, 0.5, "best")], best, answer="the answer",
        sampler="grid", pruner="none", rows=20, seeds=[1], recipe="r.yaml", command="peft sweep r.yaml",
        notes=["a note"],
    )  # fmt: skip


def test_the_best_recipe_says_why_and_can_be_trained(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_ROOT", str(workspace.path))
    file = workspace.recipe("own", data__path="${SECRET_ROOT}/colours.jsonl")
    loaded = load_recipe(file, ["data.split_seed=0", "method.r=4"], NAMES)
    best = SweepBest({"method.r": 4}, 0.5, (0.4, 0.6), "best.yaml", [0.5], [1])
    text = best_recipe_text(loaded, record(best), ["the best method.r = 4 is at the edge of 4,8"])
    assert "eval_loss 0.5, 95% interval 0.4 to 0.6, on 1 fresh seed (1)" in text and "at the edge" in text
    assert "Searched: method.r in 4,8" in text and str(workspace.path / "colours") not in text
    written = tmp_path / "best.yaml"
    written.write_text(text, encoding="utf-8")
    again = load_recipe(written, [], NAMES).recipe
    assert again.method == loaded.recipe.method and again.data == loaded.recipe.data
    assert again.output_dir == f"{loaded.recipe.output_dir}-best"


def test_a_best_without_an_interval_claims_none(workspace: Workspace) -> None:
    loaded = load_recipe(workspace.recipe("own"), [], NAMES)
    text = best_recipe_text(loaded, record(SweepBest({"method.r": 4}, 0.5, None, "best.yaml", [0.5], [1])), [])
    assert "eval_loss 0.500, on 1 fresh seed (1)" in text


def test_the_report_has_every_trial_and_says_which_score_counts() -> None:
    text = sweep_markdown(record(None))
    assert text.startswith("# Sweep of r.yaml\n\n**The answer.**")
    assert "| 0 | 4 | 0.4100 | finished |" in text
    assert "a \\| pipe and \\<b\\>html" in text and "not the result" in text and "a note" in text
