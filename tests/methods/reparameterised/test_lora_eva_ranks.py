"""EVA moves ranks: to the projections whose inputs' components explain most, as HF peft does with `rho` above 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from peftcli.adapters.format import describe
from peftcli.adapters.saving import save_adapter
from peftcli.layers.parts.lora import LoraDelta
from peftcli.methods.compose import ComposeParams
from peftcli.methods.lora import LoraParams
from peftcli.protocol.apply_method import apply_method
from tests.adapters.test_hf_peft import IDENTITY
from tests.methods.eva_start import TARGETS, batches_for, started
from tests.methods.harness import frozen, logits_of, train_steps

MANY = [*TARGETS, "o_proj", "down_proj"]


def test_moved_ranks_are_hf_pefts_patterns_and_go_through_its_files(tmp_path: Path) -> None:
    """Some projections get none; HF peft, started on the same rows, has the same ranks, alphas and modules."""
    from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights

    batches = [each for each in batches_for("llama") for _ in range(3)]
    options = {"r": 1, "lora_alpha": 16, "target_modules": MANY}
    config = LoraConfig(**options, init_lora_weights="eva", eva_config=EvaConfig(rho=8.0, tau=0.8))
    theirs = get_peft_model(frozen("llama")[0], config)
    initialize_lora_eva_weights(theirs, batches, show_progress_bar=False)
    ours, rows = started("llama", batches, tau=0.8, rho=8.0, **options)
    params = LoraParams(init_lora_weights="eva", rho=8.0, **options)
    now = ours.params_now(params)
    assert isinstance(now, LoraParams)
    wanted = {name: each for name, each in theirs.base_model.model.named_modules() if hasattr(each, "lora_A")}
    assert 0 < len(wanted) < 10 and {target.key for target in ours.targets} == set(wanted)
    for name, layer in wanted.items():
        rank = layer.r["default"]
        assert (now.rank_of(None, name), now.alpha_of(None, name)) == (rank, layer.lora_alpha["default"])
        assert now.scale_of(None, name, rank) == pytest.approx(16.0)
    without = set(now.rank_pattern) - {f"^{re.escape(name)}" for name in wanted}
    assert {now.rank_pattern[key] for key in without} == {0}
    assert f"{len(without)} of 10 projections have none" in rows.notes[-1] and "10 together" in rows.notes[-1]
    for parameter in ours.trainable_parameters().values():
        torch.nn.init.normal_(parameter)
    logits = logits_of(ours, batches[0])
    # a new model takes the state by the hyper-parameters alone
    model, anatomy = frozen("llama")
    again = apply_method(model, anatomy, now)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(logits_of(again, batches[0]), logits)
    # and HF peft by the files
    meta = describe(ours, anatomy, task="causal_lm", base=IDENTITY)
    save_adapter(tmp_path / "a", attachment_state=ours.state_dict(), params=now, meta=meta)
    loaded = PeftModel.from_pretrained(frozen("llama")[0], str(tmp_path / "a")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batches[0]).logits, logits, atol=1e-5, rtol=1e-5)


def test_a_bias_goes_with_its_projection_and_other_variants_move_ranks_too() -> None:
    batches = batches_for("bert", 3)
    attachment, _ = started("bert", batches, r=1, rho=6.0, bias="lora_only", use_dora=True, use_rslora=True,
                            target_modules=["attn.q", "attn.v", "attn.o", "ffn.down"])  # fmt: skip
    biases = {name for name in attachment.trainable_parameters() if name.endswith(".bias")}
    kept = {target.module for target in attachment.targets}
    assert 0 < len(kept) < 8 and {name.removesuffix(".bias") for name in biases - set(attachment.head)} == kept
    assert {name for name, each in attachment.model.named_parameters() if each.requires_grad} >= biases
    for placed in attachment.placed:
        if isinstance(placed.part, LoraDelta):  # rank-stabilised: alpha x rank / r over the root of the rank
            assert placed.part.scale == pytest.approx(16 * placed.part.rank**0.5)
    with torch.no_grad():
        assert torch.allclose(logits_of(attachment, batches[0]), frozen("bert")[0].eval()(**batches[0]).logits)
    assert train_steps(attachment, batches[0]) == set(attachment.trainable_parameters())


def test_a_composition_keeps_the_ranks_of_its_part() -> None:
    batches = batches_for("llama", 3)
    lora = {"name": "lora", "r": 1, "rho": 6.0, "init_lora_weights": "eva", "target_modules": MANY}
    params = ComposeParams.model_validate({"parts": [lora, {"name": "ia3"}]})
    attachment, _ = started("llama", batches, params)
    now = attachment.params_now(params)
    assert now != params
    model, anatomy = frozen("llama")
    again = apply_method(model, anatomy, now)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in attachment.state_dict().items()
    }
    assert attachment.saved_size() == again.saved_size()
    train_steps(attachment, batches[0])


def test_rho_alone_does_nothing_and_is_named() -> None:
    assert set(LoraParams(rho=3.0).idle_keys()) == {"rho"} and not LoraParams(init_lora_weights="eva").idle_keys()


def test_an_adapter_that_started_so_can_be_gone_on_from() -> None:
    own = LoraParams(init_lora_weights="eva")
    earlier = own.model_copy(update={"rank_pattern": {"^a": 0}, "alpha_pattern": {"^b": 3.0}})
    assert own.after(earlier) == earlier
    assert LoraParams(r=4, init_lora_weights="eva").after(earlier).rank_pattern == {}
    assert LoraParams().after(earlier) == LoraParams()
    whole = ComposeParams.model_validate({"parts": [own.model_dump(), {"name": "ia3"}]})
    assert whole.after(whole.with_parts({"lora": earlier, "ia3": whole.parts[1]})).parts[0] == earlier
