"""What is recommended beside a finding of the user's own, and what the bound on memory counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.analysis.advice import situation
from peftcli.analysis.advice.advised_recipe import lines_to_paste
from peftcli.analysis.advice.computed_values import VALUES
from peftcli.analysis.advice.memory_bound import Shapes
from peftcli.analysis.advice.recommendation import recommend
from peftcli.analysis.advice.situation import look_at
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from tests.analysis.advice.test_recommendation import by_key, write_sweep
from tests.models.stored_bases import write_config
from tests.tiny import VOCAB, tiny_config


def test_a_rate_of_an_own_sweep_stands_beside_the_settings_that_it_was_found_with(recipe) -> None:
    loaded = recipe("llama", method={"name": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["attn.q"]})
    write_sweep(loaded, **{"training.learning_rate": 7e-3})
    lines = by_key(recommend(loaded))
    found = {key: lines[f"method.{key}"].value for key in ("r", "lora_alpha", "target_modules")}
    assert found == {"r": 2, "lora_alpha": 4, "target_modules": ["attn.q"]}
    assert "your sweep was made with it" in lines["method.r"].reason
    assert "literature says 8" in lines["method.r"].reason
    assert "method.target_modules=[attn.q], method.r=2, method.lora_alpha=4" in lines["training.learning_rate"].scope


def test_what_one_sweep_searched_is_not_replaced_by_what_a_later_one_was_made_with(recipe) -> None:
    loaded = recipe("llama", method={"name": "lora", "r": 2})
    write_sweep(loaded, **{"training.learning_rate": 7e-3})
    write_sweep(loaded, "earlier", "2026-11-20", **{"method.r": 16})
    lines = by_key(recommend(loaded))
    assert lines["method.r"].value == 16 and lines["training.learning_rate"].value == 7e-3
    assert "method.r=2" in lines["training.learning_rate"].scope


def test_a_key_inside_a_block_of_the_method_is_kept(recipe) -> None:
    block = {"name": "unipelt", "lora": {"r": 2}, "prefix": None, "adapter": {"reduction_factor": 4}}
    loaded = recipe("llama", method=block)
    write_sweep(loaded, **{"method.lora.r": 2})
    found = recommend(loaded)
    assert by_key(found)["method.lora.r"].value == 2
    pasted = yaml.safe_load(lines_to_paste(found.lines))["method"]
    assert pasted["lora"] == {"r": 2} and pasted["name"] == "unipelt"


def test_a_sweep_on_other_rows_says_so(recipe, tmp_path) -> None:
    loaded = recipe("llama")
    write_sweep(loaded, **{"method.r": 2})
    assert by_key(recommend(loaded))["method.r"].limit == "says nothing about other keys"
    other = load_recipe(Path(loaded.path), [f"data.path={tmp_path / 'others.jsonl'}"], NAMES)
    assert "measured on" in by_key(recommend(other))["method.r"].limit


def test_epochs_that_max_steps_overrides_are_said_to(recipe) -> None:
    notes = recommend(recipe("llama")).notes
    assert any("training.max_steps: 6 says how long it trains" in note for note in notes)
    notes = recommend(recipe("llama", training={"num_train_epochs": 2})).notes
    assert not any("max_steps" in note for note in notes)


def test_a_base_in_fewer_bits_is_not_asked_for_in_4_bits(recipe, tmp_path) -> None:
    assert by_key(recommend(recipe("llama"), 1000))["method.name"].value == "qlora"
    assert by_key(recommend(recipe("llama", model__load_in_8bit=True), 1000))["method.name"].value == "lora"
    for settings in ({"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}):
        tiny_config("llama").save_pretrained(tmp_path / "stored")
        write_config(tmp_path / "stored", quantization_config=settings)
        stored = recipe("llama", model__name_or_path=str(tmp_path / "stored"))
        assert by_key(recommend(stored, 1000))["method.name"].value == "lora", settings


def test_an_upper_bound_counts_logits_float32_weights_and_the_rank_that_is_recommended(recipe) -> None:
    plain: dict[str, Any] = {"numbers": 10**6, "linear_numbers": 0, "adapter_numbers": 0, "width": 64, "blocks": 2}
    plain["row_tokens"] = 512

    def needed(rows: int = 1, **more: Any) -> float:
        return Shapes(**{**plain, **more}).bytes_needed(rows, four_bits=False, checkpointing=False)

    assert needed(vocabulary=1000) - needed() == 12 * 512 * 1000
    assert needed(4, vocabulary=1000, logit_tokens=1024) - needed(4) == 12 * 1024 * 1000
    assert needed(number_bytes=4.0) - needed() == 2 * 10**6

    loaded = recipe("llama", data__max_length=16)
    now = look_at(loaded, None)
    of_labels = look_at(recipe("bert", "sequence_classification"), None)
    seen: list[Shapes] = []

    def noted(shapes: Shapes, memory: int) -> tuple[int, frozenset[str]]:
        seen.append(shapes)
        return 1, frozenset()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(situation, "memory_needs", noted)
        look_at(loaded, 10**9)
        look_at(recipe("bert", "sequence_classification"), 10**9)
    language, labelled = seen
    assert language.number_bytes == 4.0 and language.vocabulary == VOCAB and labelled.vocabulary == 0
    assert language.adapter_numbers == 16 * now.rank_numbers and of_labels.rank_for_tokens == 8
    many = dataclasses.replace(now, supervised_tokens=100 * now.rank_numbers, largest_rank=512)
    assert many.rank_for_tokens == VALUES["rank_from_tokens"](many) == 128
