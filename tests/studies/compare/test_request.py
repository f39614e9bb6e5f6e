"""What is typed after `peft compare`: methods of a list, recipes that agree, references, and all that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.console.method_text import split_methods
from peftcli.console.study_views.compare_request import CompareRequest, read_request, split_arguments
from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.studies.compare.asked import check_comparable
from peftcli.studies.compare.budget.run_cost import RunLength
from peftcli.studies.compare.candidate import file_name, labels_of
from peftcli.studies.compare.trial_recipes import rate_trial, score_trial, timing_trial


def request(*paths: Path, **options) -> CompareRequest:
    given = {"overrides": [], "methods": None, "budget": None, "rates": 3, "seeds": 3, "jobs": 1, "reference": None,
             "metric": None, "storage": None, "output": None, "trust_code": False, "command": "peft"}  # fmt: skip
    return CompareRequest(paths=paths, **{**given, **options})


def refused(*paths: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        check_comparable(read_request(request(*paths, **options)))
    return str(error.value)


def test_settings_belong_to_the_method_before_them() -> None:
    assert split_methods("lora, adalora,lora:r=32,target_modules=[attn.q,attn.v],bitfit,vera,r=8") == [
        "lora", "adalora", "lora:r=32,target_modules=[attn.q,attn.v]", "bitfit", "vera:r=8",
    ]  # fmt: skip
    for text, reason in (("r=8,lora", "setting without a method"), (",", "no method"), ("lora,lora", "lora twice")):
        with pytest.raises(UserError, match=reason):
            split_methods(text)


def test_arguments_with_an_equals_sign_are_overrides_unless_there_is_such_a_file(tmp_path) -> None:
    file = tmp_path / "a=b.yaml"
    file.write_text("x: 1")
    assert split_arguments([str(file), "seed=1"]) == ([file], ["seed=1"])
    with pytest.raises(UserError, match="nothing to compare"):
        split_arguments(["seed=1"])


def test_the_same_method_keeps_the_recipes_settings_and_rate_and_others_take_their_defaults(workspace) -> None:
    recipe = workspace.recipe("own", method__r=2)
    asked = read_request(request(recipe, methods="lora,lora:r=8,bitfit", reference="none"))
    assert [each.label for each in asked.candidates] == ["lora", "lora:r=8", "bitfit"]
    assert [each.name for each in asked.candidates] == ["lora", "lora-r8", "bitfit"]
    lora, wide, bitfit = (each.loaded.recipe for each in asked.candidates)
    assert (lora.method.r, wide.method.r, wide.method.target_modules) == (2, 8, "all-linear")
    assert [each.own_rate for each in asked.candidates] == [0.01, 0.01, None]
    assert bitfit.method.name == "bitfit" and asked.reference is None
    every = read_request(request(recipe, methods="lora,bitfit", overrides=["training.learning_rate=0.5"]))
    assert {each.own_rate for each in every.candidates} == {0.5}


def test_the_reference_is_trained_beside_the_others_unless_it_is_one_of_them(workspace) -> None:
    recipe = workspace.recipe("referred")
    head = read_request(request(recipe, methods="lora,full"))
    assert head.reference == "head alone" == head.candidates[-1].label
    assert head.candidates[-1].loaded.recipe.method.num_layers == 0
    assert head.candidates[-1].own_rate is None, "the recipe's rate is LoRA's"
    full = read_request(request(recipe, methods="lora,full", reference="full"))
    assert (full.reference, len(full.candidates)) == ("full", 2)
    named = read_request(request(recipe, methods="lora,freeze:num_layers=0"))
    assert (named.reference, len(named.candidates)) == ("freeze:num_layers=0", 2)
    label = read_request(request(recipe, methods="lora,bitfit", reference="bitfit"))
    assert (label.reference, len(label.candidates)) == ("bitfit", 2)
    assert "choose full, head, base, none" in refused(recipe, methods="lora,bitfit", reference="bitfat")


def test_of_language_models_the_reference_is_the_base(workspace) -> None:
    recipe = workspace.recipe("causal", model__name_or_path=str(workspace.path / "llama"), task="causal_lm",
                              data__columns={"text": "text"}, data__format="text")  # fmt: skip
    asked = read_request(request(recipe, methods="lora,ia3"))
    assert asked.reference == "base" and [each.label for each in asked.candidates] == ["lora", "ia3"]


def test_recipes_that_differ_in_more_than_the_method_are_refused_with_place_and_remedy(workspace) -> None:
    one = workspace.recipe("one")
    other = workspace.recipe("other", method={"name": "bitfit"}, training__num_train_epochs=2, data__max_length=8)
    text = refused(one, other)
    lines = other.read_text().splitlines()
    line = 1 + next(number for number, each in enumerate(lines) if "max_length" in each)
    assert f"{other}:{line}: data.max_length is 8 here, but 16 in {one}" in text
    assert "peft compare ... data.max_length=16" in text and "training.num_train_epochs=4" in text
    equal = ["data.max_length=16", "training.num_train_epochs=1"]
    assert len(read_request(request(one, other, overrides=equal, reference="none")).candidates) == 2


def test_runs_of_every_purpose_fit_a_recipe_that_saves_and_warms_up(workspace) -> None:
    recipe = workspace.recipe("saving", training__save_strategy="steps", training__save_steps=10,
                              training__max_steps=80, training__warmup_steps=60)  # fmt: skip
    one = read_request(request(recipe, methods="lora,bitfit", reference="none")).candidates[0]
    half, whole = RunLength(40, 20, 8, full=80), RunLength(80, 20, 8, scored=8, full=80)
    trials = [timing_trial(one), rate_trial(one, 0.1, half), score_trial(one, 0.1, 1, whole)]
    warm = [load_recipe(recipe, trial.overrides, NAMES).recipe.training.warmup_steps for trial in trials]
    assert warm == [0, 30, 60], "the same share of shorter runs"


def test_labels_of_recipes_are_all_different_and_none_is_that_of_the_base() -> None:
    files = [Path("a.yaml"), Path("a.yml"), Path("x/a.yaml"), Path("base.yaml"), Path("lora.yaml")]
    assert labels_of(files, ("base",)) == ["a.yaml", "a.yml", "x/a", "base.yaml", "lora"]


def test_a_recipe_named_like_the_base_is_no_reference(workspace) -> None:
    values = {"model__name_or_path": str(workspace.path / "llama"), "task": "causal_lm",
              "data__columns": {"text": "text"}, "data__format": "text"}  # fmt: skip
    asked = read_request(request(workspace.recipe("base", **values), workspace.recipe("b", method__r=2, **values)))
    labels = [each.label for each in asked.candidates]
    assert asked.reference == "base" and "base" not in labels and len(set(labels)) == 2


def test_rates_and_directories_may_differ(workspace) -> None:
    one, other = workspace.recipe("fast"), workspace.recipe("slow", training__learning_rate=0.1, method__r=2)
    asked = read_request(request(one, other, reference="none"))
    assert [(each.label, each.own_rate) for each in asked.candidates] == [("fast", 0.01), ("slow", 0.1)]


def test_the_direction_of_a_typed_metric_is_not_that_of_the_recipes_own(workspace) -> None:
    recipe = workspace.recipe("falling", training__greater_is_better=False)
    asked = read_request(request(recipe, methods="lora,bitfit", metric="accuracy", reference="none"))
    assert asked.metric == "eval_accuracy" and asked.greater_is_better


def test_bad_input_is_refused_with_what_to_do(workspace) -> None:
    recipe = workspace.recipe("bad")
    unheld = workspace.recipe("unheld", data__val_set_size=0)
    assert "data.val_set_size=0.1" in refused(unheld, methods="lora,bitfit")
    wrong = refused(recipe, methods="lora,bitfit", metric="rouge1")
    assert "--metric" in wrong and "'rouge1' is for text, not sequence_classification" in wrong
    assert "there is no method" in refused(recipe, methods="lora,lorra") or "lorra" in refused(recipe, methods="lorra")
    assert "alone is nothing to compare" in refused(recipe, reference="none")
    assert "1h30m" in refused(recipe, methods="lora,bitfit", budget="soon")
    assert "longer than a year" in refused(recipe, methods="lora,bitfit", budget=f"{'9' * 400}h")
    assert "--methods is for one recipe" in refused(recipe, unheld, methods="lora,bitfit")
    assert "named twice" in refused(recipe, recipe)
    assert "named twice" in refused(recipe, recipe.parent / "x" / ".." / recipe.name)
    with pytest.raises(UserError, match="there is no nowhere"):
        assert request(workspace.path, Path("nowhere")).of_runs
    with pytest.raises(UserError, match="is a directory"):
        assert request(recipe, workspace.path).of_runs


def test_the_study_goes_beside_runs_by_the_name_of_what_is_compared() -> None:
    assert request(Path("configs/lora.yaml"), Path("configs/full.yaml")).directory == Path("runs/compare-configs")
    assert request(Path("configs/lora.yaml")).directory == Path("runs/compare-lora")
    assert request(Path("a.yaml"), output="x/y").directory == Path("x/y")


@pytest.mark.parametrize("label", ["lora:r=32", "../../x", "a b", "ü", ".", "x" * 300])
def test_labels_become_names_of_files(label: str) -> None:
    name = file_name(label)
    assert name and len(name) <= 60 and Path(name).name == name and not name.startswith((".", "-"))
