"""LoftQ on a real 4-bit base: HF peft's factors and file, one model live and merged, and runs that go on."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftcli.adapters.format import SavedAdapter, describe
from peftcli.adapters.hf import hf_export
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.errors import UserError
from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.parts.lora import LoraDelta
from peftcli.merging.merge_run import merge_run
from peftcli.methods.lora import LoraParams
from peftcli.models.load.load_model import load_model
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.weights.stored_weights import StoredWeights
from peftcli.names import NAMES
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.schema import ModelSpec
from peftcli.training.run import train
from peftcli.training.watch.reporting import Silent
from tests.merging.runs import make_recipe
from tests.methods.harness import batch_for, logits_of, train_steps
from tests.tiny import save_tiny

pytest.importorskip("bitsandbytes")

SIZES: dict[str, dict[str, int]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
    "bloom": {"hidden_size": 64},
}
LOFTQ: dict[str, Any] = {"r": 4, "lora_alpha": 8, "init_lora_weights": "loftq", "target_modules": ["attn.q", "ffn.up"]}


def base_of(folder: Path, family: str, *, four_bits: bool = True) -> ModelSpec:
    """Write a tiny base; return its model block."""
    return ModelSpec(name_or_path=str(save_tiny(folder, family, "causal_lm", **SIZES[family])), load_in_4bit=four_bits)


def started(spec: ModelSpec, **changes: Any) -> tuple[Attachment, list[str]]:
    """Return LoftQ on the base, started from its files, and its notes."""
    model = load_model(spec, "causal_lm").model
    torch.manual_seed(7)
    attachment = apply_method(model, read_anatomy(model), LoraParams(**{**LOFTQ, **changes}))
    attachment.initialise(model)
    weights = StoredWeights(spec, "causal_lm")
    attachment.start_from_stored(weights)
    return attachment, weights.notes


def hf_loftq() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return HF peft's `loftq_init`, on the CPU instead of a GPU."""
    from peft.utils import loftq_utils

    names = dict(vars(loftq_utils))
    exec(inspect.getsource(loftq_utils.loftq_init).replace('else "cuda"', 'else "cpu"'), names)
    found: Callable[..., tuple[Tensor, Tensor, Tensor]] = names["loftq_init"]
    return found


def test_the_factors_are_hf_pefts_where_the_scale_is_one(tmp_path: Path) -> None:
    spec = base_of(tmp_path, "llama")
    spec = spec.model_copy(update={"bnb_4bit_use_double_quant": False})  # as loftq_init quantises
    attachment, _ = started(spec, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    weights, state = load_file(Path(spec.name_or_path) / "model.safetensors"), attachment.state_dict()
    for target in attachment.targets:
        held, a, b = hf_loftq()(weights[f"{target.module}.weight"], num_bits=4, reduced_rank=4)
        torch.testing.assert_close(BaseLinear(attachment.model.get_submodule(target.module)).weight(), held)
        torch.testing.assert_close(state[f"{target.key}.lora_A.weight"], a, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state[f"{target.key}.lora_B.weight"], b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_the_pair_is_the_best_approximation_of_what_the_base_lacks(family: str, tmp_path: Path) -> None:
    spec = base_of(tmp_path, family)
    attachment, notes = started(spec)
    whole = load_model(spec.model_copy(update={"load_in_4bit": False}), "causal_lm").model
    before, after = [], []
    for placed, target in zip(attachment.placed, attachment.targets, strict=True):
        wanted = BaseLinear(whole.get_submodule(target.module), target.slice).weight()
        error = wanted - BaseLinear(attachment.model.get_submodule(target.module), target.slice).weight()
        assert isinstance(placed.part, LoraDelta)
        left = error - placed.part.delta().detach()
        values = torch.linalg.svdvals(error)
        torch.testing.assert_close(torch.linalg.svdvals(left)[:-4], values[4:], atol=1e-4, rtol=1e-3)
        before.append(float(error.norm() / wanted.norm()))
        after.append(float(left.norm() / wanted.norm()))
    assert sum(after) < 0.95 * sum(before)
    mean = [f"{sum(column) / len(column):.2%}" for column in (before, after)]
    assert notes == [
        f"{len(before)} projections start from their quantisation error (LoftQ), which falls from {mean[0]} of the "
        f"weight to {mean[1]} on average"
    ]


def test_hf_peft_puts_the_run_s_files_on_the_quantised_base(tmp_path: Path) -> None:
    from peft import PeftModel

    spec = base_of(tmp_path, "llama")
    attachment, _ = started(spec)
    batch = batch_for(attachment.model)
    train_steps(attachment, batch)
    anatomy, base = read_anatomy(attachment.model), load_model(spec, "causal_lm")
    meta = describe(attachment, anatomy, task="causal_lm", base=base.identity)
    params, state = LoraParams(**LOFTQ), attachment.state_dict()
    save_adapter(tmp_path / "adapter", attachment_state=state, params=params, meta=meta)
    theirs = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter")).eval()
    attachment.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, logits_of(attachment, batch), atol=1e-5, rtol=1e-4)
    saved = load_adapter(tmp_path / "adapter")
    assert all(torch.equal(saved.state[key], value) for key, value in state.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_exported_files_hold_one_pair_for_the_quantised_base(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    spec = base_of(tmp_path, family)
    attachment, _ = started(spec)
    batch = batch_for(attachment.model)
    train_steps(attachment, batch)
    base = load_model(spec, "causal_lm")
    meta = describe(attachment, read_anatomy(attachment.model), task="causal_lm", base=base.identity)
    saved = SavedAdapter(LoraParams(**LOFTQ), attachment.state_dict(), meta)
    (tmp_path / "out").mkdir()
    hf_export.write(saved, tmp_path, tmp_path / "out", None)
    keys = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert keys and all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in keys)
    theirs = PeftModel.from_pretrained(base.model, str(tmp_path / "out")).eval()
    attachment.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, logits_of(attachment, batch), atol=1e-5, rtol=1e-4)


def run_of(folder: Path, family: str, method: str) -> Path:
    """Train LoftQ for four steps; return the run."""
    base = base_of(folder / "base", family).name_or_path
    given = {**LOFTQ, "name": method}
    make_recipe(folder, "causal_lm", given, base, **({} if method == "qlora" else {"load_in_4bit": True}))
    settings = [
        "training.max_steps=4",
        "training.learning_rate=0.01",
        "training.per_device_train_batch_size=2",
        f"output_dir={folder / 'run'}",
    ]
    train(load_recipe(folder / "recipe.yaml", settings, NAMES), reporter=Silent())
    return folder / "run"


@pytest.mark.parametrize(("family", "method"), [("llama", "lora"), ("gpt2", "qlora")])
def test_a_run_merges_into_the_unquantised_base_without_the_error_it_took_up(
    family: str, method: str, tmp_path: Path
) -> None:
    run = run_of(tmp_path, family, method)
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified and report.quantization_agreement is not None
    adapter = load_adapter(run / "adapter")
    assert isinstance(adapter.params, LoraParams)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", tmp_path / "merged"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    pairs = [key.removesuffix(".initial_A") for key in adapter.state if key.endswith(".initial_A")]
    assert all(float(adapter.state[f"{k}.initial_B"].norm()) > 0 for k in pairs)
    moved = sum(float((adapter.state[f"{k}.lora_B.weight"] - adapter.state[f"{k}.initial_B"]).norm()) for k in pairs)
    assert moved > 0  # trained: what was merged is the training's change alone
    for name in changed:
        if family == "llama":
            key = name.removesuffix(".weight")
            s = adapter.state
            change = s[f"{key}.lora_B.weight"] @ s[f"{key}.lora_A.weight"]
            change -= s[f"{key}.initial_B"] @ s[f"{key}.initial_A"]
            torch.testing.assert_close(after[name] - before[name], 2.0 * change, atol=1e-5, rtol=1e-3)


def test_a_base_that_stays_whole_is_refused_when_the_recipe_is_read(tmp_path: Path) -> None:
    base = save_tiny(tmp_path, "llama", "causal_lm")
    with pytest.raises(UserError, match="loftq starts from what quantisation takes"):
        make_recipe(tmp_path, "causal_lm", {"name": "lora", "init_lora_weights": "loftq"}, base)
    compose = {"name": "compose", "parts": [{"name": "lora", "init_lora_weights": "loftq"}, {"name": "bitfit"}]}
    with pytest.raises(UserError, match="loftq starts from what quantisation takes"):
        make_recipe(tmp_path, "causal_lm", compose, base)


def test_a_checkpoint_that_is_stored_quantised_is_refused(tmp_path: Path) -> None:
    spec = base_of(tmp_path, "llama")
    config = Path(spec.name_or_path) / "config.json"
    given = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**given, "quantization_config": {"quant_method": "bitsandbytes"}}), encoding="utf-8")
    with pytest.raises(UserError, match="stored quantised"):
        StoredWeights(spec, "causal_lm").projection("model.layers.0.self_attn.q_proj")


def test_a_part_of_a_composition_and_a_base_in_8_bits_start_so_too(tmp_path: Path) -> None:
    spec = base_of(tmp_path, "llama")
    for bits, largest in (({}, 0.2), ({"load_in_4bit": False, "load_in_8bit": True}, 0.02)):
        own = spec.model_copy(update=bits)
        model = load_model(own, "causal_lm").model
        parts: list[Any] = [LoraParams(**LOFTQ), registry.info("ln_tuning").params()]
        attachment = apply_method(model, read_anatomy(model), registry.info("compose").params(parts=parts))
        attachment.initialise(model)
        weights = StoredWeights(own, "causal_lm")
        attachment.start_from_stored(weights)
        (note,) = weights.notes
        before, after = (float(found) / 100 for found in re.findall(r"([\d.]+)%", note))
        assert 0 < after < before < largest
