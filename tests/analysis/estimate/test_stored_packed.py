"""Bases whose checkpoint is stored packed are estimated in the bits in which they are held."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from peftcli.analysis.estimate import estimating
from peftcli.analysis.estimate.estimating import estimate, read_basis
from peftcli.analysis.estimate.memory_options import options
from peftcli.errors import UserError
from peftcli.models.load.load_model import load_model
from peftcli.models.stored_quantised import stored_bits
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe, recipe_from_overrides
from peftcli.recipe.schema import ModelSpec
from tests.models.stored_bases import write_config
from tests.tiny import save_tiny, tiny_config

WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "library_bytes", lambda _device, *, quantised: nullcontext(lambda: 0))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a llama that is a config alone."""
    tiny_config("llama", **WIDE).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def recipe(directory: Path, *changes: str) -> LoadedRecipe:
    given = [f"model.name_or_path={directory}", "task=causal_lm", "method.name=lora", "data.path=nowhere.jsonl"]
    return recipe_from_overrides("test", [*given, "data.max_length=16", "training.bf16=false", *changes], NAMES)


def weights(directory: Path, *changes: str) -> int:
    return estimate(read_basis(recipe(directory, *changes))).devices[0].parts["weights"]


FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (FOUR, ["model.load_in_4bit=true", "model.bnb_4bit_use_double_quant=false"]),
        ({**FOUR, "bnb_4bit_use_double_quant": True}, ["model.load_in_4bit=true"]),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ["model.load_in_8bit=true"]),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, ["model.load_in_4bit=true"]),
        ({"quant_method": "awq", "bits": 4}, ["model.load_in_4bit=true"]),
        ({"quant_method": "quanto", "weights": "int8"}, ["model.load_in_8bit=true"]),
        ({"quant_method": "fp8"}, []),
    ],
    ids=lambda value: value["quant_method"] if isinstance(value, dict) else None,
)
def test_a_stored_base_takes_what_quantising_it_here_takes(
    settings: dict[str, Any], same: list[str], base: Path, tmp_path: Path
) -> None:
    here, plain = weights(base, *same), weights(base)
    write_config(base, quantization_config=settings)
    assert weights(base) == here
    assert here == plain if not same else here < 0.5 * plain


def test_what_the_quantiser_left_stays_as_it_was(base: Path) -> None:
    write_config(base, quantization_config=FOUR)
    all_packed = weights(base)
    write_config(
        base, quantization_config={**FOUR, "llm_int8_skip_modules": ["lm_head", "q_proj", "model.layers.0.mlp"]}
    )
    config = tiny_config("llama", **WIDE)
    numbers = config.num_hidden_layers * 256 * 256 + 3 * 256 * 512
    assert weights(base) - all_packed == numbers * 4 - numbers // 2 - 4 * numbers // 64


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("Int4WeightOnlyConfig", 4), ("Int8DynamicActivationInt4WeightConfig", 4), ("Float8WeightOnlyConfig", 8)],
)
def test_torchao_names_the_bits_in_the_type(kind: str, bits: int) -> None:
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": "torchao", "quant_type": {"default": {"_type": kind}}}
    assert stored_bits(config) == bits


def test_bits_that_are_not_told_are_said_to_be_unknown(base: Path) -> None:
    plain = weights(base)
    write_config(base, quantization_config={"quant_method": "aqlm", "nbits_per_codebook": 16})
    found = estimate(read_basis(recipe(base)))
    assert found.devices[0].parts["weights"] == plain
    assert any("its config does not say in how many bits" in note for note in found.notes)


def test_a_packed_base_is_not_offered_in_4_bits_nor_to_methods_that_train_it(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "names", lambda: ("lora", "ia3", "full"))
    write_config(base, quantization_config=FOUR)
    settings, methods = options(read_basis(recipe(base)), 10**12, 1, lambda _text: None)
    assert not any("load_in_4bit" in option.overrides for option in settings)
    assert [option.method for option in methods] == ["ia3"]


@pytest.mark.parametrize("double", [True, False])
def test_weights_are_those_of_a_real_checkpoint(double: bool, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this platform")
    plain, stored = save_tiny(tmp_path / "plain", "llama", **WIDE), tmp_path / "stored"
    spec = ModelSpec(name_or_path=str(plain), load_in_4bit=True, bnb_4bit_use_double_quant=double)
    load_model(spec, "causal_lm").model.save_pretrained(stored)
    for file in plain.glob("token*"):
        shutil.copy(file, stored)
    model: Any = load_model(ModelSpec(name_or_path=str(stored)), "causal_lm").model
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    for state in (each.weight.quant_state for each in model.modules() if hasattr(each, "quant_state")):
        held += state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    assert weights(stored) == pytest.approx(held, rel=0.01)


def test_a_method_that_trains_the_base_is_refused_on_a_packed_one(base: Path) -> None:
    write_config(base, quantization_config=FOUR)
    with pytest.raises(UserError, match="cannot train a quantised base"):
        read_basis(recipe(base, "method.name=full"))


@pytest.mark.parametrize(
    ("settings", "divided"), [({"quant_method": "gptq", "bits": 4}, False), ({"quant_method": "fp8"}, True)]
)
def test_what_a_run_on_a_stored_base_is_refused_is_not_offered(
    settings: dict[str, Any], divided: bool, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "names", lambda: ("lora", "ia3", "qlora"))
    write_config(base, quantization_config=settings)
    found, methods = options(read_basis(recipe(base)), 10**12, 1, lambda _text: None)
    assert not any("load_in_4bit" in option.overrides for option in found)
    assert any("fsdp" in option.overrides for option in found) is divided
    assert [option.method for option in methods] == ["ia3"]


def test_methods_that_train_the_base_are_offered_in_place_of_qlora(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "names", lambda: ("qlora", "lora", "full"))
    _, methods = options(read_basis(recipe(base, "method.name=qlora")), 10**12, 1, lambda _text: None)
    assert [option.method for option in methods] == ["lora", "full"]
