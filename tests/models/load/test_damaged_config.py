"""A config.json with any key missing or of any other value loads, or is refused with the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.analysis.counting import count_method
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams
from peftcli.models.config_facts import number_of_layers, positions, task_refusal, unknown_model_type, width
from peftcli.models.load.config_limits import CONFIG, checked_config
from peftcli.models.load.dtypes import checkpoint_dtype
from peftcli.models.load.heads import configure_head
from peftcli.models.load.load_model import load_config, load_model, shape_of
from peftcli.models.load.model_files import find_source
from peftcli.recipe.schema import ModelSpec, TaskName
from tests.damage import changed
from tests.tiny import save_tiny

FAMILIES: dict[str, TaskName] = {"llama": "causal_lm", "bert": "sequence_classification"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    kinds = {"llama": "causal_lm", "bert": "base"}
    return {family: save_tiny(home / family, family, kind) for family, kind in kinds.items()}


def look(directory: Path, task: TaskName) -> None:
    """Do what a command does with a base before its weights load."""
    spec, settings = ModelSpec(name_or_path=str(directory)), checked_config(directory / CONFIG)
    if unknown_model_type(settings) or task_refusal(settings, task):
        return
    number_of_layers(settings), width(settings), positions(settings)
    config = load_config(spec)
    count_method(config, task, LoraParams())
    configure_head(config, task, None, spec)
    checkpoint_dtype(config, find_source(str(directory))), shape_of(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_config(family: str, bases: dict[str, Path]) -> None:
    file = bases[family] / CONFIG
    whole = file.read_text()
    settings = json.loads(whole)
    unnamed = []
    try:
        for name, other in changed(settings):
            file.write_text(other)
            try:
                look(bases[family], FAMILIES[family])
            except UserError as error:  # any other exception fails the test
                text = str(error)
                if CONFIG not in text or (name not in text and "nested too deeply" not in text):
                    unnamed.append((name, text))
    finally:
        file.write_text(whole)
    assert unnamed == []


@pytest.mark.parametrize(
    ("family", "change", "key"),
    [
        ("llama", {"rope_parameters": {"rope_type": "new"}}, "rope_parameters"),
        ("llama", {"hidden_act": "swish2"}, "hidden_act"),
        ("llama", {"dtype": "float3"}, "dtype"),
        ("llama", {"pad_token_id": 10**6}, "pad_token_id"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads"),
        ("llama", {"num_attention_heads": 5}, "num_attention_heads"),
        ("llama", {"quantization_config": "x"}, "quantization_config"),
        ("llama", {"quantization_config": {"quant_method": "seven"}}, "seven"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads"),
        ("bert", {"hidden_act": "gelu_newer"}, "hidden_act"),
    ],
)
def test_what_transformers_lacks_is_named_by_every_way_to_a_model(
    family: str, change: dict[str, Any], key: str, bases: dict[str, Path]
) -> None:
    file = bases[family] / CONFIG
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | change))
    try:
        with pytest.raises(UserError) as caught:
            load_model(ModelSpec(name_or_path=str(bases[family])), FAMILIES[family])
        assert key in str(caught.value)
    finally:
        file.write_text(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attn_implementation": "somebody/kernel"}, "code of the hub"),
        ({"text_config": {"_attn_implementation": "somebody/kernel@v1"}}, "code of the hub"),
        ({"transformers_weights": "adapter_model.bin"}, "another weight file"),
        ({"languages": ["en_XX"], "default_language": None}, "which one to use"),
        ({"num_hidden_layers": 10**7}, "more than any model has"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "more than any model has"),
        ({"vocab_size": 10**30}, "larger than any number"),
    ],
)
def test_what_would_run_code_or_never_end_is_refused_before_transformers_reads_it(
    change: dict[str, Any], said: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    settings = json.loads((bases["llama"] / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(settings | change))
    with pytest.raises(UserError, match=said) as caught:
        load_config(ModelSpec(name_or_path=str(tmp_path)))
    assert str(tmp_path / CONFIG) in str(caught.value)
