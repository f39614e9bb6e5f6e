"""Bases that others have quantised train, resume, predict and merge; which of them, stored_bases.py says.

Those of torchao, GPTQ and AWQ are tried where their libraries are installed, in an environment of its own: `pip install
torchao gptqmodel optimum` beside this project; gptqmodel 7.7 asks for torch 2.14, and with `--no-deps` works with 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli.errors import Stopped, UserError
from peftcli.inference.predict_run import predict_run
from peftcli.layers.quantised.quantised_weights import dequantised, is_quantised
from peftcli.merging.merge_run import merge_run
from peftcli.models.load.load_model import load_model
from peftcli.recipe.schema import ModelSpec
from peftcli.training.run import train
from tests.matrix.runs import Seen, Workshop, watched_training
from tests.models.inputs import inputs_for
from tests.models.stored_bases import STORED, four_bit_weights, of_blocks, save_fp8
from tests.recipes import CtrlC, Recorder

LIBRARIES = {
    "torchao": "torchao",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
}
PACKED = ("torchao", "gptq", "awq")
APART = "its library is installed in an environment of its own: transformers would import it everywhere"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module", params=STORED)
def stored(request: pytest.FixtureRequest, workshop: Workshop) -> Iterator[tuple[str, Path]]:
    method = request.param
    if method in LIBRARIES:
        pytest.importorskip(LIBRARIES[method])
    yield method, STORED[method](workshop.home / method)


def trained(workshop: Workshop, base: Path, name: str, method: dict[str, Any], **changes: Any) -> Seen:
    loaded = workshop.recipe(name, "llama", method["name"], model__name_or_path=str(base), method=method, **changes)
    seen = watched_training(loaded)
    seen.check()
    return seen


LORA = {"name": "lora", "r": 4, "target_modules": "all-linear"}


def test_it_trains_resumes_predicts_and_merges(workshop: Workshop, stored: tuple[str, Path]) -> None:
    method, base = stored
    changes = {"method": LORA, "model__name_or_path": str(base)}
    whole, parts = (workshop.recipe(f"{method}-{name}", "llama", "lora", **changes) for name in ("whole", "parts"))
    seen = watched_training(whole)
    seen.check()
    assert seen.session is not None
    kept = [each for each in seen.session.model.modules() if is_quantised(each)]
    assert len(kept) == (14 if method in PACKED else 0)
    with pytest.raises(Stopped):
        train(parts, reporter=CtrlC(2), overwrite=True)
    last = Recorder()
    train(parts, reporter=last, resume=True)
    assert last.losses == seen.losses[2:]
    run = Path(str(whole.recipe.output_dir))
    assert len(list(predict_run(run, str(workshop.rows("llama"))))) == 12
    report = merge_run(run, workshop.home / f"{method}-merged", use_alone=False)
    assert report.verified and any("merged into the dequantised weights" in note for note in report.notes)
    assert (report.quantization_agreement is not None) == (method in PACKED)
    tensors = load_file(workshop.home / f"{method}-merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_header_counts_what_the_weights_stand_for(workshop: Workshop, stored: tuple[str, Path]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    method, base = stored
    recorder = Recorder()
    loaded = workshop.recipe(f"{method}-counted", "llama", "lora", model__name_or_path=str(base), method=LORA)
    train(loaded, reporter=recorder, overwrite=True)
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    numbers = sum(parameter.numel() for parameter in plain.parameters())
    assert recorder.facts["total"] == numbers + recorder.facts["trainable"]
    words = " ".join(recorder.notes)
    assert ("dequantised while it loads" in words) != (method in PACKED)


READS_WEIGHTS = [
    {**LORA, "use_dora": True},
    {**LORA, "init_lora_weights": "pissa"},
    {"name": "oft", "oft_block_size": 8, "target_modules": "all-linear"},
    {"name": "full"},
]


@pytest.mark.parametrize("method", READS_WEIGHTS, ids=lambda method: "-".join(map(str, method.values()))[:40])
@pytest.mark.parametrize("packed", ["torchao", "gptq"])
def test_methods_that_read_the_weights_train_on_packed_ones(
    workshop: Workshop, packed: str, method: dict[str, Any]
) -> None:
    pytest.importorskip(LIBRARIES[packed], reason=APART)
    base = workshop.home / f"{packed}-read"
    base = base if base.exists() else STORED[packed](base)
    if method["name"] == "full":
        with pytest.raises(UserError, match="full cannot train a quantised base"):
            trained(workshop, base, "read", method)
    else:
        trained(workshop, base, "read", method)


@pytest.mark.parametrize(("method", "scale"), [("fp8", "_scale_inv"), ("compressed-tensors", "_scale")])
def test_numbers_are_read_with_their_scales(workshop: Workshop, method: str, scale: str) -> None:
    if method in LIBRARIES:
        pytest.importorskip(LIBRARIES[method])
    base = STORED[method](workshop.home / f"{method}-read")
    files = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    scales = files[f"{name}{scale}"]
    for dimension, size in enumerate(files[name].shape):
        scales = scales.repeat_interleave(size // scales.shape[dimension], dimension)
    loaded = load_model(ModelSpec(name_or_path=str(base)), "causal_lm")
    torch.testing.assert_close(loaded.model.get_parameter(name), files[name].float() * scales)
    assert loaded.identity.quantization == f"{method}, dequantised"
    trained(workshop, base, f"{method}-full", {"name": "full"})


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_numbers_of_four_bits_are_read_as_they_were_packed(tmp_path: Path, method: str) -> None:
    """The layers give a gradient after a pass without one, too: those that gptqmodel would choose here give none."""
    pytest.importorskip(LIBRARIES[method], reason=APART)
    base = STORED[method](tmp_path / method)
    loaded = load_model(ModelSpec(name_or_path=str(base)), "causal_lm")
    plain = load_model(ModelSpec(name_or_path=f"{base}-plain"), "causal_lm").model
    weights = four_bit_weights(base)
    with torch.no_grad():
        for name, weight in weights.items():
            plain.get_parameter(name).copy_(weight)
            read = dequantised(loaded.model.get_submodule(name.removesuffix(".weight")))
            assert read is not None
            torch.testing.assert_close(read, weight, atol=1e-6, rtol=2e-3)
        wanted, got = (model.eval()(**inputs_for("llama")).logits for model in (plain, loaded.model))
    torch.testing.assert_close(got, wanted, atol=2e-2, rtol=1e-3)  # products with 16-bit scales
    states = loaded.model.get_input_embeddings()(inputs_for("llama")["input_ids"]).detach().requires_grad_()
    loaded.model(inputs_embeds=states).logits.sum().backward()
    assert states.grad is not None and bool(states.grad.any())


@pytest.mark.parametrize("block", [(128, 128), (24, 20), (16, 12), (20, 48)])
def test_fp8_blocks_need_not_divide_a_weight(tmp_path: Path, block: tuple[int, int]) -> None:
    """A number's scale is that of its block, counted from the first row and column; 24 rows of 32, then 8."""
    base = save_fp8(tmp_path / "base", block)
    files = load_file(base / "model.safetensors")
    loaded = load_model(ModelSpec(name_or_path=str(base)), "causal_lm")
    names = [name for name in files if name.endswith("_proj.weight")]
    assert len(names) == 14
    for name in names:
        scales = of_blocks(files[f"{name}_scale_inv"], files[name].shape, block)
        torch.testing.assert_close(loaded.model.get_parameter(name), files[name].float() * scales)


def test_packed_weights_take_an_adapter_as_hf_peft_does(workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason=APART)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from peftcli.adapters.transfer import export_run
    from peftcli.inference.complete_model import find_used
    from peftcli.inference.open_run import Opening, load_run

    base = workshop.home / "torchao-peft"
    base = base if base.exists() else STORED["torchao"](base)
    loaded = workshop.recipe("torchao-peft-run", "llama", "lora", model__name_or_path=str(base), method=LORA)
    train(loaded, reporter=Recorder(), overwrite=True)
    run = Path(str(loaded.recipe.output_dir))
    export_run(run, tmp_path / "hf", to="hf-peft")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "hf")
    ours = load_run(find_used(run, Opening())).model
    with torch.no_grad():
        wanted, got = (model.eval()(**inputs_for("llama")).logits for model in (theirs, ours))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
