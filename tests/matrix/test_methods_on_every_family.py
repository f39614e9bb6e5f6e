"""Methods x families: every method trains, saves and loads on every family, or it is on the list of refusals.

The head stays frozen here, so that what is learnt is learnt by the method.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftcli.analysis.fitting import fits
from peftcli.errors import UserError
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.training.speed.activation_checkpointing import enable_checkpointing
from tests.matrix.cases import CASES, CHECKPOINTED, NOT_OF_TEXT, ROUTES
from tests.matrix.pairs import FIRST_TASK, Pair, build, changes_for, train
from tests.tiny import FAMILIES, kind_of, tiny_config, tiny_model

METHODS = registry.names()
WITHOUT_BIASES = {
    "modernbert", "phi3", "llama", "mistral", "qwen3", "gemma2", "gemma3_text", "olmo2", "granite", "mixtral",
    "qwen3_moe", "t5", "mt5",
}  # fmt: skip
REFUSALS: dict[tuple[str, str], str] = {
    **{("bitfit", family): "has no bias terms, so BitFit would train nothing; use lora" for family in WITHOUT_BIASES},
    **{("prompt_tuning", family): "takes no token embeddings that a prompt could join; use" for family in NOT_OF_TEXT},
    **{("loreft", family): "has no prompt of tokens to intervene on; use" for family in NOT_OF_TEXT},
}
"""Every pair that is refused, with a part of its reason. Prefixes reach every family of the table."""
TOO_WIDE = {"miss": "r 64 is above its", "shira": "has fewer weights than r 32 asks for"}
"""Methods whose default size is beyond these tiny models."""
CORE = "gpt2"
PAIRS = [
    pytest.param(method, family, marks=[pytest.mark.core] if family == CORE else [])
    for method in METHODS
    for family in FAMILIES
    if (method, family) not in REFUSALS
]


def attached(method: str, family: str, seed: int = 0) -> Pair:
    return build(family, FIRST_TASK[kind_of(family)], method, seed=seed, train_head=False, **CASES[method].params)


def test_every_method_has_a_case() -> None:
    assert set(CASES) == set(METHODS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_without_biases_are_those_listed(family: str) -> None:
    names = [name for name, _ in tiny_model(family, "base", **changes_for(family)).named_parameters()]
    assert any(name.endswith("bias") for name in names) == (family not in WITHOUT_BIASES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_refusals_are_those_listed(family: str, tmp_path: Path) -> None:
    too_wide = set() if family in NOT_OF_TEXT else set(TOO_WIDE)
    if family in NOT_OF_TEXT:
        reasons = {method: _why_not(method, family) for method in METHODS}
    else:
        tiny_config(family, **changes_for(family)).save_pretrained(tmp_path)
        found = fits(METHODS, str(tmp_path))  # on the meta device; `peft methods --model` prints these
        reasons = {method: list(fit.reasons) for method, fit in found.items()}
    assert {method for method, why in reasons.items() if why} == {m for m, f in REFUSALS if f == family} | too_wide
    for method, why in reasons.items():
        if why:
            assert (TOO_WIDE[method] if method in too_wide else REFUSALS[method, family]) in why[0]


def _why_not(method: str, family: str) -> list[str]:
    model = tiny_model(family, FIRST_TASK[kind_of(family)])
    params = registry.info(method).params(**CASES[method].params)
    try:
        apply_method(model, read_anatomy(model), params)
    except UserError as error:
        return [problem.message for problem in error.problems]
    return []


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_a_method_learns_and_round_trips(method: str, family: str) -> None:
    case, pair = CASES[method], attached(method, family)
    trained = train(pair, case.rate, case.target)
    assert trained.last < case.target * trained.first, trained
    trainable = pair.attachment.trainable_parameters()
    assert trained.moved == set(trainable)
    assert _others_are_still(pair.model, pair.attachment)

    fresh = attached(method, family, seed=1)
    expected = pair.outputs()
    assert not torch.allclose(fresh.outputs(), expected, atol=1e-3)
    saved = {key: tensor.clone() for key, tensor in pair.attachment.state_dict().items()}
    fresh.attachment.load_state_dict(saved)
    again = fresh.attachment.state_dict()
    assert set(again) == set(saved) and all(torch.equal(again[key], saved[key]) for key in saved)
    torch.testing.assert_close(fresh.outputs(), expected, rtol=1e-5, atol=1e-5)


def _others_are_still(model: nn.Module, attachment: Attachment) -> bool:
    """Return whether nothing besides the trainable parameters asks for a gradient or holds one."""
    mine = {id(parameter) for parameter in attachment.trainable_parameters().values()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in mine]
    return not any(parameter.requires_grad or parameter.grad is not None for parameter in others)


@pytest.mark.parametrize("family", ROUTES)
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_gives_the_same_gradients(method: str, family: str) -> None:
    if (method, family) not in REFUSALS:
        _same_gradients(attached(method, family))


@pytest.mark.parametrize("family", [family for family in CHECKPOINTED if family not in ROUTES])
def test_checkpointing_gives_the_same_gradients_on_every_family(family: str) -> None:
    _same_gradients(attached("compose", family))


def _same_gradients(pair: Pair) -> None:
    pair.model.train()
    plain = _gradients(pair)
    enable_checkpointing(pair.model)
    again = _gradients(pair)
    assert set(again) == set(plain) and plain
    for name, gradient in plain.items():
        torch.testing.assert_close(
            again[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}"
        )


def _gradients(pair: Pair) -> dict[str, Any]:
    torch.manual_seed(5)  # dropout
    trainable = pair.attachment.trainable_parameters()
    for parameter in trainable.values():
        parameter.grad = None
    pair.loss().backward()
    return {name: parameter.grad.clone() for name, parameter in trainable.items() if parameter.grad is not None}


def test_albert_refuses_checkpointing() -> None:
    with pytest.raises(UserError, match="does not support"):
        enable_checkpointing(tiny_model("albert", "sequence_classification"))
