"""Recipes and adapters that an earlier version stored: old names are read as today's, what is gone is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.aliases import renamed_keys
from peftcli.recipe.aliases.renamed_keys import CHANGES, Change, upgrade_
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.stored_recipe import load_stored_recipe
from peftcli.recipe.yaml.dump_recipe import dump_recipe

OLD = """\
model: {name_or_path: org/model}
task: causal_lm
method:
  name: compose
  parts:
    - name: lora
      rank: 4
    - name: adapter
      rank: 4
training:
  group_by_length: false
  warm: 0
"""
MADE_UP = (
    *CHANGES,
    Change("9.0", "rank", "r", method="lora"),
    Change("9.0", "rank", "bottleneck_size", method="adapter", value=lambda rank: 2 * rank),
    Change("9.1", "training.warm", None, harmless=(0, None), remedy="train again with training.warmup_steps"),
)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(renamed_keys, "CHANGES", MADE_UP)
    (tmp_path / "recipe.yaml").write_text(OLD)
    return tmp_path / "recipe.yaml"


def test_old_names_are_read_as_those_of_today(stored: Path) -> None:
    loaded = load_stored_recipe(stored, NAMES)
    lora, adapter = loaded.recipe.method.parts  # type: ignore[attr-defined]  # of compose
    assert (lora.r, adapter.bottleneck_size) == (4, 8)
    assert loaded.recipe.training.train_sampling_strategy == "random"
    assert loaded.where("training.train_sampling_strategy") == (str(stored), 11)
    assert loaded.where("method.parts.1.bottleneck_size") == (str(stored), 9)
    again = stored.with_name("again.yaml")
    again.write_text(dump_recipe(loaded.recipe))
    assert load_recipe(again, [], NAMES, need_data=False).recipe == loaded.recipe


def test_a_value_that_is_gone_is_named_with_its_line_and_the_remedy(stored: Path) -> None:
    stored.write_text(OLD.replace("warm: 0", "warm: 10"))
    with pytest.raises(UserError) as caught:
        load_stored_recipe(stored, NAMES)
    first, second = caught.value.problems
    assert str(first) == (
        f"{stored}:12: training.warm = 10: this key was removed in peftcli 9.1\n"
        "    train again with training.warmup_steps"
    )
    assert "use that version" in str(second)


def test_a_recipe_that_somebody_writes_is_not_upgraded(stored: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(stored, [], NAMES, need_data=False)
    assert "`group_by_length` of" in str(caught.value) and "train_sampling_strategy" in str(caught.value)


def test_the_new_name_wins_where_both_stand() -> None:
    data = {"training": {"group_by_length": False, "train_sampling_strategy": "sequential"}}
    assert upgrade_(data, CHANGES)[1] == []
    assert data == {"training": {"train_sampling_strategy": "sequential"}}


@pytest.mark.parametrize("data", [{}, {"training": None}, {"training": [1]}, {"method": "lora"}, {"method": [None]}])
def test_what_is_no_recipe_is_left_alone(data: dict[str, object]) -> None:
    before = repr(data)
    assert upgrade_(data, MADE_UP) == ([], [])
    assert repr(data) == before


def test_every_change_leads_to_a_key_of_today_and_from_one_of_none() -> None:
    from peftcli.recipe.field_descriptions import field_at
    from peftcli.recipe.schema import Recipe

    assert CHANGES
    for change in CHANGES:
        model = Recipe if change.method is None else registry.info(change.method).params
        if change.absent is None:
            assert field_at(model, tuple(change.old.split("."))) is None, change.old
        else:  # a key that is new: stored recipes without it get what versions of their time did
            assert change.old == change.new
        assert change.new is None or field_at(model, tuple(change.new.split("."))) is not None, change.new
