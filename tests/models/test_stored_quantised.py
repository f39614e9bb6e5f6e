"""A checkpoint that is stored quantised says what it lacks here before its weights load: here it has none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PretrainedConfig

from peftcli.assembly.outline import outline
from peftcli.errors import UserError
from peftcli.layers.quantised.quantiser_table import QUANTISERS
from peftcli.models.load.load_model import load_model
from peftcli.models.stored_quantised import read_dequantised, stored_method, stored_problems
from peftcli.recipe.schema import ModelSpec
from peftcli.training.training_checks import TrainingChecks
from tests.matrix.runs import Workshop
from tests.models.stored_bases import write_config
from tests.tiny import save_tiny

SPEC = ModelSpec(name_or_path="base")


def config_of(method: str) -> PretrainedConfig:
    return PretrainedConfig(quantization_config={"quant_method": method}, name_or_path="base")


def words(method: str, device: str, *, trains: bool = True, spec: ModelSpec = SPEC) -> str:
    return str(UserError(stored_problems(config_of(method), spec, device, trains=trains) or "none"))


@pytest.mark.parametrize("method", QUANTISERS)
def test_each_quantiser_names_its_library_and_its_device(method: str) -> None:
    row, said = QUANTISERS[method], words(method, "mps")
    if row.not_loaded:
        assert row.not_loaded in said
        return
    for module, package in row.packages:
        there = find_spec(module.partition(".")[0]) is not None
        assert ("pip install" in said and package in said) or there
    if row.devices is not None:
        assert f"compute on {' and '.join(row.devices)}, not on mps" in said
    if row.not_trained:
        assert row.not_trained in said and row.not_trained not in words(method, "cuda", trains=False)
    if row.hub_code:
        allowed = SPEC.model_copy(update={"trust_remote_code": True})
        assert "trust_remote_code" in said and "trust_remote_code" not in words(method, "mps", spec=allowed)


@pytest.mark.skipif(not transformers.__version__.startswith("5.24."), reason="the table was made for transformers 5.24")
def test_every_quantiser_of_transformers_has_a_row() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    without_ours = {"bitsandbytes_4bit", "bitsandbytes_8bit", "gguf"}  # one row; never in a config.json
    assert set(AUTO_QUANTIZER_MAPPING) - without_ours == set(QUANTISERS) - {"bitsandbytes"}


@pytest.mark.skipif(find_spec("gptqmodel") is not None, reason="gptqmodel is installed")
def test_all_that_is_wrong_is_said_before_weights_load(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    base = save_tiny(tmp_path / "base", "llama")
    (base / "model.safetensors").unlink()
    write_config(base, quantization_config={"quant_method": "gptq", "bits": 4})
    loaded = workshop.recipe("run", "llama", "full", model__name_or_path=str(base), training__report_to=["wandb"])
    with pytest.raises(UserError) as caught:
        outline(loaded, torch.device("mps"), TrainingChecks())
    said = str(caught.value)
    assert "needs gptqmodel, optimum, which are not installed" in said and f"{base}/config.json" in said
    assert "compute on cuda and cpu and xpu, not on mps" in said
    assert "full cannot train a quantised base" in said and "name the unquantised model" in said
    with pytest.raises(UserError, match="pip install gptqmodel optimum"):
        load_model(ModelSpec(name_or_path=str(base)), "causal_lm")


def test_a_second_quantisation_and_an_unknown_quantiser_are_refused() -> None:
    twice = SPEC.model_copy(update={"load_in_4bit": True})
    assert "quantised already, with fp8" in words("fp8", "cpu", spec=twice)
    assert "'ours' is no quantiser that is known here" in words("ours", "cpu") and "compressed-tensors" in words(
        "x", "cpu"
    )


def test_settings_in_the_text_model_count_too() -> None:
    config = config_of("fp8")
    whole = PretrainedConfig(name_or_path="base")
    whole.text_config = config
    assert stored_method(whole) == "fp8"
    read_dequantised(whole)
    assert whole.quantization_config["dequantize"] is True
    packed = config_of("gptq")
    read_dequantised(packed)
    assert "dequantize" not in packed.quantization_config
