"""Estimates from the config alone: every method, and what raises and lowers the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.analysis.contract_models import MODELS
from peftcli.analysis.estimate import library_memory
from peftcli.analysis.estimate.estimating import estimate, read_basis
from peftcli.analysis.estimate.memory_options import options
from peftcli.analysis.estimate.memory_parts import PARTS, Estimate
from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe, recipe_from_overrides

TASKS = {"llama": "causal_lm", "bert": "sequence_classification"}


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries are measured once in their own test; elsewhere differences count."""
    from peftcli.analysis.estimate import estimating

    monkeypatch.setattr(estimating, "library_bytes", lambda _device, *, quantised: 0)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a directory with nothing but a config, by model."""
    made = {}
    for kind in MODELS:
        if kind.title in TASKS:
            made[kind.title] = tmp_path_factory.mktemp(kind.title)
            kind.made_config().save_pretrained(made[kind.title])
    return made


def recipe(directory: Path, task: str, method: str = "lora", *changes: str) -> LoadedRecipe:
    """Return a recipe without data for a model that is only a config."""
    given = [f"model.name_or_path={directory}", f"task={task}", f"method.name={method}", "data.path=nowhere.jsonl"]
    return recipe_from_overrides("test", [*given, "data.max_length=32", "training.bf16=false", *changes], NAMES)


def estimated(directory: Path, task: str, method: str = "lora", *changes: str) -> Estimate:
    return estimate(read_basis(recipe(directory, task, method, *changes)))


CASES = [(name, title) for name in registry.names() for title in TASKS if name != "compose"]


@pytest.mark.parametrize(("method", "title"), CASES)
def test_every_method_is_estimated_where_it_fits(method: str, title: str, directories: dict[str, Path]) -> None:
    loaded = recipe(directories[title], TASKS[title], method)
    try:
        basis = read_basis(loaded)
    except UserError as error:
        assert title == "llama", (method, error)  # no biases there
        return
    found = estimate(basis)
    assert found.tier == "config" and found.seconds is None
    parts = found.devices[0].parts
    assert set(parts) == set(PARTS) and parts["weights"] > 0 and parts["optimizer"] > 0
    assert found.peak == found.devices[0].peak_memory_bytes > parts["weights"]


def test_memory_grows_with_length_and_rows_and_shrinks_with_checkpointing(directories: dict[str, Path]) -> None:
    def peak(*changes: str) -> int:
        fixed = ("training.max_tokens_per_micro_batch=100000", "training.gradient_checkpointing=false")
        return estimated(directories["llama"], "causal_lm", "lora", *fixed, *changes).peak

    plain = peak()
    assert peak("data.max_length=16") < plain < peak("training.per_device_train_batch_size=16")
    assert peak("training.gradient_checkpointing=true") < plain


def test_parts_are_those_of_the_recipe(directories: dict[str, Path]) -> None:
    found = estimated(directories["llama"], "causal_lm", "full").devices[0].parts
    lora = estimated(directories["llama"], "causal_lm").devices[0].parts
    assert found["optimizer"] > 1.9 * found["weights"]  # two moments in float32
    assert lora["optimizer"] < lora["weights"] == found["weights"]


def test_what_fits_is_named_with_what_to_type(directories: dict[str, Path]) -> None:
    basis = read_basis(recipe(directories["llama"], "causal_lm"))
    found = options(basis, 10**12, 1)
    assert found[0].overrides == "" and found[0].fits and found[0].saves == 0
    assert any("training.gradient_checkpointing=true" in option.overrides and option.saves > 0 for option in found)
    assert any("--num-processes 2" in option.overrides for option in found)
    assert not any(option.fits for option in options(basis, 1, 1))


def test_libraries_are_measured_in_a_process_of_their_own() -> None:
    import torch

    measured = library_memory.library_bytes(torch.device("cpu"), quantised=False)
    assert 100e6 < measured < 3e9
    assert library_memory.library_bytes(torch.device("cpu"), quantised=False) == measured


def test_a_config_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        read_basis(recipe(tmp_path, "causal_lm"))
