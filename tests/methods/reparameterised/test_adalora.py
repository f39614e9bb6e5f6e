"""AdaLoRA against its formula, the official schedule written out, and HF peft on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peftcli.attachments.adalora import AdaLoraAttachment
from peftcli.errors import UserError
from peftcli.layers.parts.rank_allocator import BudgetSchedule, RankAllocator
from peftcli.layers.parts.svd_lora import orthogonality, svd_scale
from peftcli.methods.adalora import METHOD, AdaLoraParams
from peftcli.protocol.apply_method import apply_method
from tests.methods.harness import (
    attached,
    batch_for,
    disturb,
    frozen,
    frozen_without_gradient,
    logits_of,
    loss_of,
    numbers,
    round_trip,
    train_steps,
)
from tests.tiny import tiny_model


def adalora(family: str, **params: Any) -> AdaLoraAttachment:
    attachment = attached("adalora", family, **params)
    assert isinstance(attachment, AdaLoraAttachment)
    return attachment


def test_defaults() -> None:
    params = AdaLoraParams()
    assert (params.beta1, params.beta2, params.orth_reg_weight) == (0.85, 0.85, 0.1)
    assert params.phases(1000) == (100, 300, 10)
    assert params.phases(3) == (0, 1, 1)
    assert AdaLoraParams(tinit=0, tfinal=0, deltaT=5).phases(1000) == (0, 0, 5)


def test_the_output_is_the_formula() -> None:
    attachment = adalora("llama", init_r=4, target_r=2, lora_alpha=6.0, target_modules=["attn.q"])
    disturb(attachment)
    state = attachment.state_dict()
    plain = tiny_model("llama")
    with torch.no_grad():
        for i in range(2):
            key = f"model.layers.{i}.self_attn.q_proj"
            q, sigma, p = (state[f"{key}.lora_{name}"] for name in "AEB")
            plain.get_parameter(f"{key}.weight").add_(6.0 / (4 + 1e-5) * p @ torch.diag(sigma[:, 0]) @ q)
        batch = batch_for(plain)
        torch.testing.assert_close(logits_of(attachment, batch), plain(**batch).logits, atol=1e-5, rtol=1e-5)
    assert svd_scale(0.0, 4) == pytest.approx(4 / (4 + 1e-5))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_a_fresh_adapter_is_the_identity_and_then_everything_moves(family: str) -> None:
    attachment = adalora(family)
    batch = batch_for(attachment.model)
    plain = (
        tiny_model(family, "sequence_classification")
        if family == "bert"
        else tiny_model(family, "seq2seq_lm" if family == "t5" else "causal_lm")
    )
    with torch.no_grad():
        torch.testing.assert_close(logits_of(attachment, batch), plain(**batch).logits)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)


def test_initial_values_are_the_official_codes() -> None:
    part = adalora("llama", init_r=12).placed[0].part
    assert torch.count_nonzero(part.lora_E) == 0
    assert part.lora_A.std().item() == pytest.approx(0.02, rel=0.15)
    assert part.lora_B.std().item() == pytest.approx(0.02, rel=0.15)


def test_the_orthogonality_term_is_the_mean_of_unsquared_norms() -> None:
    attachment = adalora("llama", init_r=3, target_r=2, orth_reg_weight=0.5, target_modules=["attn.q", "attn.v"])
    disturb(attachment)
    norms = []
    for placed in attachment.placed:
        a, b = placed.part.lora_A.detach(), placed.part.lora_B.detach()
        norms += [((a @ a.T - torch.eye(3)) ** 2).sum().sqrt(), ((b.T @ b - torch.eye(3)) ** 2).sum().sqrt()]
    loss = attachment.extra_loss()
    assert loss is not None
    torch.testing.assert_close(loss.detach(), 0.5 * torch.stack(norms).sum() / 8)  # 2 x 4 matrices
    assert float(orthogonality(torch.eye(3, 5))) == 0.0
    assert adalora("llama", orth_reg_weight=0.0).extra_loss() is None


def test_the_budget_follows_the_cubic_schedule() -> None:
    schedule = BudgetSchedule(initial=120, target=80, tinit=10, tfinal=30, delta_t=5, total=100)
    assert [schedule.budget(step) for step in (1, 10)] == [120, 120]
    assert schedule.budget(40) == int(80 + 40 * (1 - 30 / 60) ** 3) == 85
    assert [schedule.budget(step) for step in (70, 71, 100)] == [80, 80, 80]
    assert [step for step in range(1, 101) if schedule.prunes(step)][:4] == [15, 20, 25, 30]
    assert all(schedule.prunes(step) for step in range(71, 101))
    assert schedule.learns_importance(69) and not schedule.learns_importance(70)
    assert BudgetSchedule(10, 5, 0, 0, 7, 20).prunes(20)  # the last step, whatever deltaT


def test_ranks_sum_to_the_budget_at_the_start_midway_and_the_end() -> None:
    attachment = adalora("llama", init_r=4, target_r=2, tinit=2, tfinal=3, deltaT=1)
    batch = batch_for(attachment.model)
    optimizer = torch.optim.AdamW(attachment.trainable_parameters().values(), lr=1e-2, weight_decay=0.0)
    schedule = attachment.schedule(12)
    places = len(attachment.placed)
    for step in range(1, 13):
        loss_of(attachment, batch).backward()
        optimizer.step()
        attachment.after_optimizer_step(step, 12)
        optimizer.zero_grad()
        assert sum(attachment.ranks().values()) == schedule.budget(step), step
    assert schedule.budget(1) == 4 * places and sum(attachment.ranks().values()) == 2 * places
    assert len(set(attachment.ranks().values())) > 1  # they moved to where they count


def reference_importance(
    steps: list[dict[str, tuple[torch.Tensor, torch.Tensor]]], beta1: float, beta2: float
) -> dict[str, torch.Tensor]:
    """The score of every element after some steps, as methods.md prints it."""
    scores = {}
    for name in steps[0]:
        smooth, spread = torch.zeros_like(steps[0][name][0]), torch.zeros_like(steps[0][name][0])
        for step in steps:
            weight, gradient = step[name]
            now = (weight * gradient).abs()
            smooth = beta1 * smooth + (1 - beta1) * now
            spread = beta2 * spread + (1 - beta2) * (now - smooth).abs()
        scores[name] = smooth * spread
    return scores


def test_pruning_takes_the_least_important_triplets() -> None:
    attachment = adalora("llama", init_r=4, target_r=2, target_modules=["attn.q"], beta1=0.7, beta2=0.6)
    disturb(attachment)
    parts = {placed.key: placed.part for placed in attachment.placed}
    allocator = RankAllocator(parts, 0.7, 0.6)  # type: ignore[arg-type]  # all of them are SVD layers
    steps = []
    for _ in range(3):
        step = {}
        for key, part in parts.items():
            for name in ("lora_A", "lora_E", "lora_B"):
                parameter = part.get_parameter(name)
                parameter.grad = torch.randn_like(parameter)
                step[f"{key}.{name}"] = (parameter.detach().clone(), parameter.grad.clone())
        steps.append(step)
        allocator._update()
    scores = reference_importance(steps, 0.7, 0.6)
    triplets = [
        scores[f"{key}.lora_E"][i, 0] + scores[f"{key}.lora_A"][i].mean() + scores[f"{key}.lora_B"][:, i].mean()
        for key in parts
        for i in range(4)
    ]
    order = torch.stack(triplets).argsort()
    expected = torch.ones(8, dtype=torch.bool)
    expected[order[:3]] = False
    assert torch.equal(~torch.cat(allocator.pruned(5)).flatten(), expected)
    assert not torch.cat(allocator.pruned(8)).any()  # the budget has not dropped: nothing falls


def test_frozen_averages_give_the_same_ranks_to_the_end_and_after_a_resume() -> None:
    def run(stop: int | None) -> AdaLoraAttachment:
        attachment = adalora("llama", init_r=4, target_r=2, tinit=1, tfinal=4, deltaT=1)
        batch = batch_for(attachment.model)
        optimizer = torch.optim.SGD(attachment.trainable_parameters().values(), lr=0.5)
        for step in range(1, 11):
            (loss_of(attachment, batch) + attachment.extra_loss()).backward()
            optimizer.step()
            attachment.after_optimizer_step(step, 10)
            optimizer.zero_grad()
            if step == stop:  # as a checkpoint does
                state, training = attachment.state_dict(), attachment.training_state()
                attachment = adalora("llama", init_r=4, target_r=2, tinit=1, tfinal=4, deltaT=1)
                attachment.load_state_dict(state)
                attachment.load_training_state(training)
                optimizer = torch.optim.SGD(attachment.trainable_parameters().values(), lr=0.5)
        return attachment

    whole = run(None)
    assert sum(whole.ranks().values()) == 2 * len(whole.placed)
    for stop in (3, 7):  # before and within the final phase
        resumed = run(stop)
        assert resumed.ranks() == whole.ranks()
        for name, parameter in whole.trainable_parameters().items():
            assert torch.equal(resumed.trainable_parameters()[name], parameter), (stop, name)


def test_the_file_holds_the_kept_ranks_only() -> None:
    attachment = adalora("gpt2", init_r=4, target_r=2, target_modules=["attn.q", "ffn.down"])
    disturb(attachment)
    with torch.no_grad():
        attachment.placed[0].part.lora_E[1] = 0.0
        attachment.placed[1].part.lora_E[:] = 0.0
    state = attachment.state_dict()
    first, second = (placed.key for placed in attachment.placed[:2])
    assert state[f"{first}.lora_A"].shape == (3, 32) and state[f"{first}.lora_B"].shape == (32, 3)
    assert state[f"{second}.lora_E"].shape == (0, 1)
    fresh = adalora("gpt2", init_r=4, target_r=2, target_modules=["attn.q", "ffn.down"])
    disturb(fresh, seed=9)
    round_trip(attachment, fresh)
    batch = batch_for(attachment.model)
    torch.testing.assert_close(logits_of(fresh, batch), logits_of(attachment, batch))
    assert fresh.ranks() == attachment.ranks()
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in state.items()}


def test_loading_is_strict() -> None:
    attachment = adalora("llama", init_r=4, target_r=2)
    state = attachment.state_dict()
    with pytest.raises(UserError, match="missing"):
        attachment.load_state_dict({key: value for key, value in state.items() if not key.endswith("lora_E")})
    wide = adalora("llama", init_r=8)
    disturb(wide)
    with pytest.raises(UserError, match="has shape"):
        attachment.load_state_dict(wide.state_dict())


def test_counts_from_a_recipe() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    from peftcli.models.read_anatomy import read_anatomy

    params = AdaLoraParams(init_r=6, target_r=4, target_modules=["attn.q", "attn.v"])
    attachment = apply_method(model, read_anatomy(model), params)
    per_rank = 2 * ((32 + 32 + 1) + (32 + 16 + 1))  # two layers; v is narrower under grouped queries
    assert numbers(attachment.trainable_parameters()) == 6 * per_rank
    assert attachment.saved_size() == 4 * per_rank


def test_refusals() -> None:
    with pytest.raises(ValidationError, match="target_r is 9; expected at most init_r = 4"):
        AdaLoraParams(init_r=4, target_r=9)
    with pytest.raises(UserError, match=r"init_r is 20, but .*v_proj is 16 x 32"):
        apply_method(*frozen("llama"), AdaLoraParams(init_r=20, target_modules=["attn.v"]))
    assert METHOD.check_run(AdaLoraParams(), 1) == []
    assert METHOD.check_run(AdaLoraParams(tinit=50, tfinal=49), 100) == []
    assert (
        "tinit + tfinal is 50 + 50 = 100, but the run has 100"
        in METHOD.check_run(AdaLoraParams(tinit=50, tfinal=50), 100)[0]
    )
    assert METHOD.check_config({"model_type": "llama", "hidden_size": 8}, AdaLoraParams(init_r=12)) == [
        "init_r = 12 is above the model's width; the largest useful rank is 8"
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_same_as_hf_peft(dropout: float) -> None:
    from peft import AdaLoraConfig, get_peft_model

    phases = {"tinit": 2, "tfinal": 2, "deltaT": 1}
    attachment = adalora("llama", init_r=4, target_r=2, lora_alpha=8.0, target_modules=["attn.q", "attn.v"], **phases)
    disturb(attachment)
    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=["q_proj", "v_proj"],
        total_step=10,
        **phases,
        beta1=0.85,
        beta2=0.85,
        orth_reg_weight=0.1,
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(tiny_model("llama"), config)
    with torch.no_grad():
        for key, value in attachment.state_dict().items():
            module, _, name = key.rpartition(".")
            theirs.base_model.model.get_submodule(module).get_parameter(f"{name}.default").copy_(value)
    batch = batch_for(attachment.model)
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(logits_of(attachment, batch), theirs(**batch).logits, atol=1e-5, rtol=1e-5)
    # and their schedule and pruning, from the same gradients
    ours, other = loss_of(attachment, batch), theirs(**batch).loss
    extra = attachment.extra_loss()
    assert extra is not None
    torch.testing.assert_close((ours + extra).detach(), other.detach(), atol=1e-5, rtol=1e-5)
    (ours + extra).backward()
    other.backward()
    for step in (3, 4, 5):
        attachment.after_optimizer_step(step, 10)
        theirs.base_model.update_and_allocate(step)
    for placed in attachment.placed:
        kept = theirs.base_model.model.get_submodule(placed.key).lora_E["default"]
        torch.testing.assert_close(placed.part.lora_E, kept)
    assert sum(attachment.ranks().values()) < 4 * len(attachment.placed)


def test_only_an_adapter_at_the_final_budget_is_kept_as_the_best() -> None:
    attachment = adalora("llama", init_r=4, target_r=2, tinit=1, tfinal=3, deltaT=2)
    assert [step for step in range(1, 11) if attachment.settled(step, 10)] == [8, 9, 10]
    assert attached("ia3", "llama").settled(1, 10)
