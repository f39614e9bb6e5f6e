"""`compose` of any two methods that merge: merged equals live in either order, or the pair is refused when attached."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.errors import UserError
from peftcli.methods.compose import METHOD, ComposeParams
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from tests.methods import harness
from tests.methods.additive.test_prefix_tuning import loud

PLACES = ["attn.q", "attn.v", "ffn.up", "ffn.down"]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2, "target_modules": PLACES},
    "lora, biases": {"r": 2, "target_modules": PLACES, "bias": "lora_only", "use_rslora": True},
    "lora, all biases": {"r": 2, "target_modules": ["attn.q"], "bias": "all"},
    "lora, dora": {"r": 2, "target_modules": PLACES, "use_dora": True},
    "lora, olora": {"r": 2, "target_modules": PLACES, "init_lora_weights": "olora", "freeze_a": True},
    "lora, pissa": {"r": 2, "target_modules": PLACES, "init_lora_weights": "pissa"},
    "adalora": {"init_r": 3, "target_r": 2, "target_modules": PLACES},
    "vera": {"r": 4, "target_modules": PLACES},
    "ia3": {"target_modules": PLACES},
    "ia3, outputs": {"target_modules": PLACES, "feedforward_modules": []},
    "oft": {"oft_block_size": 8, "target_modules": PLACES},
    "miss": {"r": 8, "target_modules": PLACES},
    "miss, bat": {"r": 8, "target_modules": PLACES, "init_weights": "bat"},
    "hira": {"r": 2, "target_modules": PLACES},
    "lokr": {"r": 2, "target_modules": PLACES},
    "shira": {"r": 2, "target_modules": PLACES},
    "bitfit": {},
    "ln_tuning": {},
    "bitfit, roles": {"terms": ["attn.q", "ffn.down"]},
}
FUSED: dict[str, dict[str, Any]] = {
    "lora, whole": {"r": 2, "target_modules": ["c_attn"]},
    "lora, whole dora": {"r": 2, "target_modules": ["c_attn"], "use_dora": True},
    "ia3, whole input": {"target_modules": ["c_attn"], "feedforward_modules": ["c_attn"]},
    "hira, whole": {"r": 2, "target_modules": ["c_attn"]},
    "oft, whole": {"oft_block_size": 8, "target_modules": ["c_attn"]},
    "ia3, input of a role": {"target_modules": ["attn.q"], "feedforward_modules": ["attn.q"]},
}
"""On GPT-2, whose q, k and v are one matrix: the whole of it beside a role inside."""
BESIDE_DORA = ("bitfit", "ln_tuning", "lora, all biases")
"""What changes no weight of a projection."""


def typed(variant: str, options: dict[str, Any]) -> MethodParams:
    name = variant.partition(",")[0]
    model = registry.params_model(name)
    assert model is not None
    return model.model_validate({"name": name, **options})


def difference(family: str, params: ComposeParams) -> float | None:
    """Return how far merged and live logits lie apart as a share of the change; None if the pair is refused."""
    model, anatomy = harness.frozen(family)
    loud(model)
    if METHOD.check(anatomy, params):
        return None
    try:
        attachment = METHOD.attach(model, anatomy, params)
    except UserError as error:
        assert "cannot share a place" in str(error)
        return None
    model.eval()
    attachment.initialise(model)
    harness.disturb(attachment, 0.1)
    batch = harness.batch_for(model)
    live = harness.logits_of(attachment, batch)
    plain, _ = harness.frozen(family)
    loud(plain)
    with torch.no_grad():
        base = plain(**batch).logits
        state = {key: tensor.clone() for key, tensor in attachment.state_dict().items()}
        for name, rule in METHOD.merge_rules(read_anatomy(plain), params, state).items():
            parameter = plain.get_parameter(name)
            parameter.copy_(rule.apply(parameter.clone()))
        merged = plain(**batch).logits
    return float((merged - live).abs().max() / (live - base).abs().max())


def test_every_method_that_merges_is_here() -> None:
    alone = {name for name in registry.names() if registry.info(name).unmergeable is None}
    parts = {name for name in alone if registry.info(name).artifact == "adapter"} - {"compose", "unipelt", "qlora"}
    assert {variant.partition(",")[0] for variant in VARIANTS} == parts


@pytest.mark.parametrize("first", VARIANTS)
def test_merged_is_live_beside_every_other_method(first: str) -> None:
    merged = 0
    for second, options in VARIANTS.items():
        found = difference("bert", ComposeParams(parts=[typed(first, VARIANTS[first]), typed(second, options)]))
        assert found is None or found < 1e-3, second
        merged += found is not None
    assert merged, "no pair with this method merges"


@pytest.mark.parametrize("whole", FUSED)
def test_a_fused_projection_and_a_role_inside_it(whole: str) -> None:
    for inside, options in {**VARIANTS, **FUSED}.items():
        pair = [typed(whole, FUSED[whole]), typed(inside, options)]
        for parts in (pair, pair[::-1]):
            found = difference("gpt2", ComposeParams(parts=parts))
            assert found is None or found < 1e-3, inside
            rescaled = "dora" in whole or "dora" in inside
            assert found is None or not rescaled or inside in BESIDE_DORA, "DoRA's norm is another's"
