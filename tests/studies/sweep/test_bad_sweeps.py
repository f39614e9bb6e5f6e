"""What a sweep refuses before anything runs: with the option or line, what is allowed, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.studies.sweep.sweep_request import SweepOptions, SweepRequest, prepare_sweep
from tests.command_line import Workspace, workspace

__all__ = ["workspace"]

RATE = ("training.learning_rate=log:1e-5..1e-2",)


def prepared(workspace: Workspace, *overrides: str, **options: object) -> SweepRequest:
    return prepare_sweep(workspace.recipe("sweep"), overrides, SweepOptions(**options), NAMES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, ["nothing to search", "--grid method.r=4,8,16"]),
        ({"grid": ("method.r=4,8",), "search": RATE}, ["--grid and --search cannot be given together"]),
        ({"grid": ("method.lora_alph=4,8",)}, ["--grid method.lora_alph=4,8", "did you mean `lora_alpha`?"]),
        ({"grid": ("training.learnin_rate=1,2",)}, ["--grid training.learnin_rate", "did you mean `learning_rate`?"]),
        ({"grid": ("method.r=0,8",)}, ["--grid method.r=0,8", "method.r = 0; expected value >= 1"]),
        ({"grid": ("method.r=8,x",)}, ["--grid method.r=8,x", "method.r = 'x'; expected a whole number"]),
        ({"search": ("training.learning_rate=log:1e-5..200",)}, ["--search training.learning_rate", "200"]),
        ({"search": ("method.r=0..16",)}, ["method.r = 0"]),
        ({"search": ("method.r=1.5..16",)}, ["1.5 is not a whole number"]),
        ({"search": ("training.optim=1..2",)}, ["takes no numbers"]),
        ({"search": ("method.reduction_factor=2..4",)}, ["reduction_factor", "a key of"]),
        ({"grid": ("training.seed=1,2",)}, ["training.seed", "`seed` belongs at the top level"]),
        ({"grid": ("seed=1,2",)}, ["a seed is not chosen by its score", "--seeds"]),
        ({"grid": ("task=causal_lm",)}, ["task cannot be searched"]),
        ({"grid": ("output_dir=a,b",)}, ["output_dir cannot be searched", "-o DIR"]),
        ({"grid": ("data.val_set_size=0.1,0.2",)}, ["decides which rows are held out"]),
        ({"grid": ("data.validation.path=a,b",)}, ["decides which rows are held out"]),
        ({"grid": ("data.max_eval_rows=4,8",)}, ["decides which rows are held out"]),
        ({"grid": ("training.metric_for_best_model=eval_loss",)}, ["use --metric"]),
        ({"grid": ("training.eval_strategy=epoch,no",)}, ["nothing is evaluated", "eval_strategy is no"]),
        ({"grid": ("training.adam_beta1=0.8,0.9",)}, None),
        ({"grid": ("training.max_new_tokens=1,2",)}, ["has no effect", "generates no text"]),
        ({"grid": ("method.r=1..1000000",)}, ["1,000,000 points", "at most 1,000", "--search"]),
        ({"grid": ("method.r=1..1000", "training.warmup_steps=1..1000")}, ["1,000,000 points", "1,000 of method.r"]),
        ({"grid": RATE}, ["has no end", "--trials"]),
        ({"search": RATE, "sampler": "grid"}, ["has no end"]),
        ({"grid": ("method.r=8..4",)}, ["empty", "4..8"]),
        ({"search": RATE, "sampler": "tpee"}, ["--sampler", "did you mean tpe?"]),
        ({"search": RATE, "pruner": "medain"}, ["--pruner", "did you mean median?"]),
        ({"search": RATE, "trials": 0}, ["--trials", "from 1 to 10,000"]),
        ({"search": RATE, "seeds": 0}, ["--seeds", "from 1 to 100"]),
        ({"grid": ("method.r=4,8",), "trials": 5}, ["a grid tries every point"]),
        ({"search": RATE, "metric": "eval_acuracy"}, ["--metric eval_acuracy", "did you mean eval_accuracy?"]),
        ({"search": RATE, "metric": "perplexity"}, ["--metric perplexity", "not sequence_classification"]),
        ({"grid": ("method.name=lora,adapter", "method.r=4,8")}, ["a key of", "in a search file below that method"]),
        ({"grid": ("method.name=lora,lorra",)}, ["there is no such method", "did you mean lora?"]),
        ({"grid": ("training.warmup_steps=5,20", "training.max_steps=10")}, ["expected less than training.max_steps"]),
        ({"grid": ("data.max_length=16,32",)}, None),
        ({"grid": ("model.name_or_path=nowhere/at/all/here,x",)}, ["model.name_or_path"]),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_refused_with_the_place(
    workspace: Workspace, options: dict[str, object], says: Sequence[str] | None
) -> None:
    if says is None:
        prepared(workspace, **options)
        return
    with pytest.raises(UserError) as refused:
        prepared(workspace, **options)
    text = str(refused.value)
    assert all(part in text for part in says), text
    assert all(problem.suggestion for problem in refused.value.problems[:1]) or "expected" in text, text


def test_a_recipe_without_validation_rows_is_refused(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="there are no validation rows") as refused:
        prepared(workspace, "data.val_set_size=0", grid=("method.r=4,8",))
    assert "data.val_set_size=0.1" in str(refused.value)


def test_problems_of_the_recipe_come_before_those_of_the_search(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"override method\.r=x"):
        prepared(workspace, "method.r=x", grid=("method.r=4,8",))


def test_problems_in_a_search_file_have_its_lines(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "search:\n  method.name:\n    lora:\n      method.r: [0, 4]\n    adapter:\n      method.r: [4]\ntrials: many\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError) as refused:
        prepared(workspace, file=file)
    (problem,) = refused.value.problems
    assert (problem.file, problem.line) == (str(file), 7)
    file.write_text(file.read_text(encoding="utf-8").replace("many", "5"), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        prepared(workspace, file=file)
    places = {(problem.line, problem.key) for problem in refused.value.problems}
    assert places == {(4, "method.r"), (6, "method.r")}, str(refused.value)


def test_keys_below_their_method_are_checked_with_that_method(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "search:\n  method.name:\n    lora: {method.r: 4..16}\n    adapter: {method.reduction_factor: [2, 4]}\n"
        "    bitfit:\n  training.learning_rate: log:1e-4..1e-2\n",
        encoding="utf-8",
    )
    request = prepared(workspace, file=file, trials=3)
    assert [one.domain.size() for one in request.checked.space.dimensions] == [3, 13, 2, None]
    assert request.trials == 3 and not request.grid


def test_points_that_differ_in_an_idle_key_are_one_point(workspace: Workspace) -> None:
    request = prepared(workspace, grid=("training.optim=adamw_torch,sgd", "training.adam_beta1=0.8,0.9"))
    assert len(request.checked.points) == 3  # SGD has no beta
    assert request.checked.idle == {"training.adam_beta1": "sgd has no such option"}


def test_scores_are_of_the_same_rows_and_of_the_metric_asked_for(workspace: Workspace) -> None:
    request = prepared(workspace, "seed=7", grid=("method.r=4,8",), metric="accuracy", seeds=2)
    assert "data.split_seed=7" in request.overrides and request.seeds == (8, 9)
    assert request.metric == "eval_accuracy" and request.greater_is_better
    assert not prepared(workspace, grid=("method.r=4,8",)).greater_is_better


def test_the_direction_of_a_typed_metric_is_not_that_of_the_recipes_own(workspace: Workspace) -> None:
    falling = "training.greater_is_better=false"
    request = prepared(workspace, falling, grid=("method.r=4,8",), metric="accuracy")
    assert request.greater_is_better and request.loaded.recipe.training.greater_is_better is None


def test_fresh_seeds_are_seeds_beside_the_largest_one(workspace: Workspace) -> None:
    assert prepared(workspace, f"seed={2**32 - 1}", grid=("method.r=4,8",), seeds=2).seeds == (0, 1)
