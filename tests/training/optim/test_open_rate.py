"""A rate that the recipe leaves open: chosen for the model, shown, stored, and kept when the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.errors import Stopped, UserError
from peftcli.protocol.rates import rate_evidence as evidence
from peftcli.protocol.registry import registry
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder

OPEN = {"training__learning_rate": None, "training__max_steps": 6}


def stored(out: str) -> dict[str, Any]:
    return yaml.safe_load(Path(out, "recipe.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def another_default(monkeypatch) -> Callable[[], None]:
    """Return what makes the defaults others, as a later version may."""

    def change() -> None:
        found = evidence.rate_evidence()
        group = found.groups["factors"]
        points = tuple(point.model_copy(update={"rate": point.rate / 7}) for point in group.decoder)
        groups = {**found.groups, "factors": group.model_copy(update={"decoder": points})}
        later = found.model_copy(update={"groups": groups})
        monkeypatch.setattr("peftcli.protocol.rates.default_rate.rate_evidence", lambda: later)

    return change


def test_the_header_the_recipe_and_the_summary_say_the_rate_and_where_it_is_from(recipe, recorder) -> None:
    loaded = recipe(**OPEN, method={"name": "lora"})
    out = train(loaded, reporter=recorder).output_dir
    assert recorder.facts["learning_rate"] == 4e-3 == stored(out)["training"]["learning_rate"]
    assert "default for lora on a decoder of width 32 [demo-135m]" in recorder.facts["learning_rate_source"]
    assert recorder.facts["learning_rate_source"] in Path(out, "recipe.yaml").read_text(encoding="utf-8")
    (note,) = json.loads(Path(out, "summary.json").read_text(encoding="utf-8"))["notes"]
    assert note.startswith("learning rate 0.004: default for lora")
    assert recorder.steps[0].learning_rate == 4e-3
    assert train(loaded).status == "already_finished"


def test_a_rate_of_the_recipe_is_said_to_be_its_own(recipe, recorder) -> None:
    out = train(recipe(training__learning_rate=1e-3), reporter=recorder).output_dir
    assert recorder.facts["learning_rate_source"] == "from the recipe"
    assert "left open" not in Path(out, "recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("by_run", [False, True], ids=["by the recipe", "by the run's recipe"])
def test_a_run_goes_on_at_its_own_rate(recipe, another_default, longer: bool, by_run: bool) -> None:
    if longer:
        train(recipe(**OPEN))
    else:
        with pytest.raises(Stopped):
            train(recipe(**OPEN), reporter=CtrlC(2))
    again = recipe(**(OPEN | {"training__max_steps": 8} if longer else OPEN))
    rate = stored(again.recipe.output_dir)["training"]["learning_rate"]
    another_default()
    if by_run:
        again = recipe(**(OPEN | {"training__max_steps": 8 if longer else 6, "training__learning_rate": rate}))
    later = Recorder()
    train(again, resume=True, reporter=later)
    assert later.facts["learning_rate"] == rate == stored(again.recipe.output_dir)["training"]["learning_rate"]
    assert {record.learning_rate for record in later.steps} == {rate}
    assert any(f"keeps its learning rate {rate:g}; the default for a new run is" in note for note in later.notes)
    assert train(recipe(**(OPEN | {"training__max_steps": 8} if longer else OPEN))).status == "already_finished"


def test_a_run_of_an_earlier_version_goes_on_at_the_rate_that_it_had(recipe) -> None:
    """Those versions stored null, and took one number for every model."""
    with pytest.raises(Stopped):
        train(recipe(**OPEN), reporter=CtrlC(2))
    file = Path(recipe(**OPEN).recipe.output_dir, "recipe.yaml")
    tree = stored(str(file.parent))
    tree["training"]["learning_rate"] = None
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    later = Recorder()
    train(recipe(**OPEN), resume=True, reporter=later)
    assert later.facts["learning_rate"] == registry.info("lora").learning_rate
    assert "in the version that began this run" in later.facts["learning_rate_source"]
    assert stored(str(file.parent))["training"]["learning_rate"] == registry.info("lora").learning_rate


def test_a_rate_that_was_stated_is_not_taken_for_one_left_open(recipe) -> None:
    train(recipe(**OPEN | {"training__learning_rate": 4e-3}))
    with pytest.raises(UserError, match=r"differ in training\.learning_rate"):
        train(recipe(**OPEN))
    train(recipe(name="other", **OPEN))
    with pytest.raises(UserError, match=r"differ in training\.learning_rate"):
        train(recipe(name="other", **OPEN | {"training__learning_rate": 1e-3}))
