"""Losses of preference tuning: each equals its formula, written out, and no logits are kept for its gradient."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from peftcli.layers.chunked_loss import LogitTransform, head_loss
from peftcli.recipe.preference_losses import PREFERENCE_LOSSES, loss_in_words, preference_loss
from peftcli.recipe.schema import TrainingSpec
from peftcli.tasks.preference_formulas import Scores, preference_losses, rewards
from peftcli.tasks.task import TaskSettings, unprepared
from peftcli.tasks.task_table import TASKS
from tests.tiny import tiny_model

SUMS, REFERENCE, LENGTHS = [[-3.0, -7.5], [-9.25, -4.0]], [[-4.0, -6.0], [-8.0, -5.5]], [[3.0, 5.0], [4.0, 2.0]]
SETTINGS = {
    "sigmoid": {"beta": 0.3, "label_smoothing": 0.1, "sft_weight": 0.7},
    "ipo": {"beta": 0.3},
    "hinge": {"beta": 0.3},
    "robust": {"beta": 0.3, "label_smoothing": 0.2},
    "orpo": {"beta": 0.3},
    "simpo": {"beta": 2.5, "simpo_gamma": 1.2},
    "cpo": {"beta": 0.3},
}


OF_PAIRS = [name for name, info in PREFERENCE_LOSSES.items() if not info.unpaired]


def test_a_loss_is_said_with_its_hyper_parameters_and_what_it_compares_with() -> None:
    assert loss_in_words(TrainingSpec(label_smoothing=0.1)).startswith(
        "sigmoid, beta 0.1, label_smoothing 0.1; the ref"
    )
    assert "frozen copy" in loss_in_words(TrainingSpec(loss_type="ipo", reference="live"))
    assert loss_in_words(TrainingSpec(loss_type="simpo")) == "simpo, beta 2, simpo_gamma 0.5; no reference is computed"


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def written_out(name: str, pair: int, beta: float, swapped: float = 0.0, gamma: float = 0.0) -> float:
    """Return the loss of one pair as its paper writes it."""
    (chosen, rejected), (one, other) = SUMS[pair], REFERENCE[pair]
    a, b = LENGTHS[pair]
    margin = (chosen - one) - (rejected - other)
    if name == "sigmoid":
        return -(1 - swapped) * log_sigmoid(beta * margin) - swapped * log_sigmoid(-beta * margin)
    if name == "robust":
        right, wrong = log_sigmoid(beta * margin), log_sigmoid(-beta * margin)
        return (-(1 - swapped) * right + swapped * wrong) / (1 - 2 * swapped)
    if name == "ipo":
        return ((chosen - one) / a - (rejected - other) / b - 1 / (2 * beta)) ** 2
    if name == "hinge":
        return max(0.0, 1 - beta * margin)
    if name == "simpo":
        return -log_sigmoid(beta * chosen / a - beta * rejected / b - gamma)
    if name == "cpo":
        return -log_sigmoid(beta * chosen - beta * rejected) - chosen / a
    odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (chosen / a, rejected / b)]
    return -chosen / a - beta * log_sigmoid(math.log(odds[0] / odds[1]))


def scores(name: str, **more: torch.Tensor) -> Scores:
    wide = {"dtype": torch.float64}
    reference = torch.tensor(REFERENCE, **wide) if PREFERENCE_LOSSES[name].reference else None
    return Scores(more.get("sums", torch.tensor(SUMS, **wide)), torch.tensor(LENGTHS, **wide), reference)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_loss_equals_its_formula_and_has_its_gradient(name: str) -> None:
    settings = SETTINGS[name]
    loss = preference_loss(TrainingSpec(loss_type=name, **settings))
    swapped, gamma = settings.get("label_smoothing", 0.0), settings.get("simpo_gamma", 0.0)
    wanted = [written_out(name, pair, settings["beta"], swapped, gamma) for pair in range(2)]
    if "sft_weight" in settings:
        wanted = [value - 0.7 * SUMS[i][0] / LENGTHS[i][0] for i, value in enumerate(wanted)]
    assert preference_losses(scores(name), loss).tolist() == pytest.approx(wanted, rel=1e-12)
    sums = torch.tensor(SUMS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: preference_losses(scores(name, sums=x), loss), (sums,))


def test_rewards_are_beta_times_what_is_compared() -> None:
    loss = preference_loss(TrainingSpec(beta=0.5))
    assert rewards(scores("sigmoid"), loss)[0].tolist() == pytest.approx([0.5, -0.75])


def test_odds_of_probabilities_near_one_are_finite_and_so_are_their_gradients() -> None:
    loss = preference_loss(TrainingSpec(loss_type="orpo"))
    sums = torch.tensor([[0.0, -1e-9], [-1e-3, -800.0]], requires_grad=True)
    found = preference_losses(Scores(sums, torch.ones(2, 2)), loss)
    found.sum().backward()
    assert found.isfinite().all() and sums.grad is not None and sums.grad.isfinite().all()


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_losses_by_row_in_chunks_have_the_gradients_of_full_logits(trained: bool) -> None:
    head = nn.Linear(6, 11, dtype=torch.float64).requires_grad_(trained)
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, 11, (7,)), torch.randn(7, dtype=torch.float64)
    transform = LogitTransform(scale=0.5, softcap=3.0)
    found = head_loss(head, hidden, targets, transform=transform, chunk_bytes=2 * 4 * 11, by_row=True)
    (found * weights).sum().backward()
    got = [hidden.grad, head.weight.grad, head.bias.grad]
    hidden.grad = head.weight.grad = head.bias.grad = None
    wanted = nn.functional.cross_entropy(transform(head(hidden)), targets, reduction="none")
    (wanted * weights).sum().backward()
    torch.testing.assert_close(found, wanted)
    for one, other in zip(got, [hidden.grad, head.weight.grad, head.bias.grad], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_losses_and_gradients_are_those_of_trl(name: str) -> None:
    """On these weights and rows; `trl_preference.json` names the version. Its SFT term is left out."""
    golden = json.loads((Path(__file__).parent / "trl_preference.json").read_text(encoding="utf-8"))
    reference, policy = tiny_model("llama"), tiny_model("llama")
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    own = PREFERENCE_LOSSES[name].defaults
    settings = {"beta": 0.3, "label_smoothing": 0.2, "simpo_gamma": 0.4, "sft_weight": 0.0}
    if name == "sigmoid":
        settings["label_smoothing"] = 0.0  # TRL's DPO has none
    spec = TrainingSpec(loss_type=name, **{key: value for key, value in settings.items() if key in own})
    task, before = (TASKS["preference"](TaskSettings(None, None, spec)) for _ in range(2))
    task.bind(policy, unprepared)
    before.bind(reference, unprepared)
    order = [0, 2, 1, 3]  # TRL's batch has all chosen rows first
    ids, mask, answer = (
        torch.tensor(golden["batch"][key])[order] for key in ("input_ids", "attention_mask", "completion_mask")
    )
    labels = ids.masked_fill(answer == 0, -100)
    collated = {"input_ids": ids, "attention_mask": mask, "labels": labels, "learnt": (labels != -100).sum(1)}
    batch = task.batch(collated, tokens=int(mask.sum()))
    if task.needs_reference:
        with torch.no_grad():
            batch.targets["reference"] = before.log_probabilities(reference, batch)
    terms = task.loss(policy, batch)
    (terms.loss_sum / terms.count).backward()
    wanted = golden["losses"][name]
    assert terms.count == 2.0 and float(terms.loss_sum.detach()) / 2 == pytest.approx(wanted["loss"], rel=1e-5)
    for key, parameter in policy.named_parameters():
        assert parameter.grad is not None
        found = [float(parameter.grad.norm()), *parameter.grad.flatten()[:6].tolist()]
        assert found == pytest.approx(wanted["grads"][key], rel=1e-4, abs=1e-5)
