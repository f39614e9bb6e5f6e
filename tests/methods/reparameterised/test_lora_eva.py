"""EVA: LoRA's A starts from the principal components of what a projection receives on training rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftcli.attachments import input_components
from peftcli.layers.running_components import RunningComponents
from peftcli.methods.lora import LoraParams
from peftcli.protocol.apply_method import apply_method
from tests.methods.eva_start import TARGETS, batches_for, started
from tests.methods.harness import frozen, logits_of, train_steps
from tests.tiny import VOCAB


@pytest.mark.parametrize("rho", [1.0, 1.5, 2.0])
def test_it_is_hf_pefts(rho: float) -> None:
    from peft import EvaConfig, LoraConfig, get_eva_state_dict

    batches = batches_for("llama")
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights="eva", eva_config=EvaConfig(rho=rho, tau=0.9))
    theirs = get_eva_state_dict(frozen("llama")[0], [*batches, *batches], config, show_progress_bar=False)
    ours, _ = started("llama", [*batches, *batches], tau=0.9, target_modules=TARGETS, rho=rho)
    state = ours.state_dict()
    assert len(theirs) == 6
    for module, components in theirs.items():
        torch.testing.assert_close(state[f"{module}.lora_A.weight"], components.float(), atol=1e-5, rtol=1e-4)
    ranks = [len(components) for components in theirs.values()]
    assert (len(set(ranks)) > 1) == (rho > 1) and sum(ranks) == 24


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "mixtral"])
def test_it_starts_as_the_identity_and_trains(family: str) -> None:
    batches = batches_for(family, 2)
    targets = ["attn.q", "attn.v"] if family == "mixtral" else ["attn.q", "attn.v", "ffn.up"]
    attachment, rows = started(family, batches, target_modules=targets)
    with torch.no_grad():
        assert torch.equal(logits_of(attachment, batches[0]), frozen(family)[0].eval()(**batches[0]).logits)
    for key, value in attachment.state_dict().items():
        if "lora_A" in key:
            torch.testing.assert_close(value @ value.T, torch.eye(len(value)), atol=1e-4, rtol=1e-4)
    assert any("components of their inputs" in note for note in rows.notes)
    assert train_steps(attachment, batches[0]) == set(attachment.trainable_parameters())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_no_logits_are_made_that_nobody_reads(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 4,096 tokens with a vocabulary of 128,000 would take 2 GB; a head that is a target sees all tokens."""
    positions: list[int] = []
    plain = nn.Linear.forward

    def forward(own: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if own.out_features == VOCAB:
            positions.append(x.shape[1])
        return plain(own, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    targets = ["attn.q", "lm_head"] if family == "llama" else ["attn.q", "cross_attn.k"]
    batches = batches_for(family, 2)
    positions.clear()
    found, _ = started(family, batches, target_modules=targets)
    assert set(positions) == {1, input_components.TRIED}  # a few tokens tell whether the head can do without
    whole, state = [{**batch} for batch in batches], found.state_dict()
    monkeypatch.setattr(input_components, "find_route", lambda *_: None)
    for key, value in started(family, whole, target_modules=targets)[0].state_dict().items():
        torch.testing.assert_close(state[key], value, atol=0, rtol=0)


def test_projections_of_one_input_share_their_components_and_ranks_may_differ() -> None:
    state = started("llama", batches_for("llama", 2), rank_pattern={"attn.v": 6}, rho=1.0)[0].state_dict()
    q, v = (state[f"model.layers.0.self_attn.{name}_proj.lora_A.weight"] for name in "qv")
    assert torch.equal(q, v[:4]) and len(v) == 6


def test_padding_and_positions_without_a_label_do_not_count() -> None:
    (batch,) = batches_for("llama", 1)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][batch["attention_mask"] == 0] = 9
    one, two = (started("llama", [each])[0].state_dict() for each in (batch, other))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_too_few_tokens_leave_the_usual_start() -> None:
    short = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    attachment, rows = started("llama", [short], rho=1.0)
    model, anatomy = frozen("llama")
    torch.manual_seed(7)
    plain = apply_method(model, anatomy, LoraParams(r=4)).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in attachment.state_dict().items())
    assert "4 of them got too few tokens" in rows.notes[0]


def test_components_of_one_batch_are_its_principal_ones() -> None:
    torch.manual_seed(0)
    batch = torch.randn(200, 12) * torch.arange(12, 0, -1)
    running = RunningComponents(3, 0.99)
    running.add(batch)
    _, _, right = torch.linalg.svd(batch - batch.mean(0))
    assert running.components is not None
    torch.testing.assert_close((running.components * right[:3]).sum(1).abs(), torch.ones(3), atol=1e-4, rtol=0)
