"""MiSS, HiRA, LoKr and SHiRA: the formula, the identity at the start, gradients, files, merges, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.errors import UserError
from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.weight_changes.block_sums import BlockSums
from peftcli.layers.weight_changes.kronecker import factorisation
from peftcli.layers.weight_changes.sparse import random_places
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.registry import registry
from tests.methods.harness import (
    attached,
    batch_for,
    disturb,
    fold_,
    frozen,
    frozen_without_gradient,
    logits_of,
    numbers,
    round_trip,
    train_steps,
)

WHOLE = ["attn.q", "ffn.down"]
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "miss": ("miss", "llama", {"r": 5, "target_modules": WHOLE}),
    "miss of slices": ("miss", "gpt2", {"r": 8}),
    "miss of conv1d": ("miss", "gpt2", {"r": 8, "target_modules": ["c_attn"], "init_weights": "mini", "mini_r": 6}),
    "miss, bat": ("miss", "t5", {"r": 8, "init_weights": "bat"}),
    "miss, bat of slices": ("miss", "gpt2", {"r": 8, "init_weights": "bat"}),
    "hira": ("hira", "bert", {"r": 4, "target_modules": WHOLE}),
    "hira of slices": ("hira", "gpt2", {"r": 4, "target_modules": ["attn.q", "attn.v", "embeddings"]}),
    "hira of a scaled table": ("hira", "gemma2", {"r": 4, "target_modules": ["embeddings"]}),
    "lokr": ("lokr", "t5", {"r": 2, "alpha": 3, "target_modules": WHOLE[:1]}),
    "lokr of slices": ("lokr", "gpt2", {"r": 1, "decompose_both": True, "init_weights": "lycoris"}),
    "shira": ("shira", "llama", {"r": 4, "target_modules": WHOLE}),
    "shira of slices": ("shira", "gpt2", {"r": 4, "mask_type": "magnitude"}),
}


@pytest.mark.parametrize("case", CASES)
def test_identity_gradients_round_trip_and_merge(case: str) -> None:
    name, family, options = CASES[case]
    attachment = attached(name, family, **options)
    attachment.initialise(attachment.model)
    batch = batch_for(attachment.model)
    plain, _ = frozen(family)
    with torch.no_grad():
        assert torch.equal(logits_of(attachment, batch), plain(**batch).logits)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)
    disturb(attachment)
    live = logits_of(attachment, batch)
    assert not torch.allclose(live, plain(**batch).logits, atol=1e-6)
    fresh = attached(name, family, **options)
    round_trip(attachment, fresh)
    assert torch.equal(logits_of(fresh, batch), live)
    params = registry.info(name).params(**options)
    rules = registry.method(name).merge_rules(read_anatomy(plain), params, attachment.state_dict())
    fold_(plain, rules)
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, live, atol=1e-5, rtol=1e-5)


def test_a_shard_is_summed_before_the_block_multiplies() -> None:
    linear = torch.nn.Linear(7, 4)
    part = BlockSums(BaseLinear(linear), 3, random=True)
    x, y = torch.randn(2, 7), torch.zeros(2, 4)
    sums = x[:, 0:3] + x[:, 3:6] + torch.nn.functional.pad(x[:, 6:], (0, 2))
    torch.testing.assert_close(part(x, y), sums @ part.miss_block)
    left, right = part.low_rank()
    torch.testing.assert_close(part(x, y), x @ (left @ right).T)


def test_hira_multiplies_the_frozen_weight() -> None:
    attachment = attached("hira", "llama", r=3, target_modules=["attn.q"])
    disturb(attachment)
    part = attachment.placed[0].part
    weight = attachment.model.get_parameter(f"{attachment.placed[0].key}.weight")
    expected = weight * (part.hira_B @ part.hira_A)
    torch.testing.assert_close(part.delta(), expected)
    assert torch.linalg.matrix_rank(part.delta()) > 3


@pytest.mark.parametrize("options", [{"r": 2}, {"r": 64}, {"r": 1, "decompose_both": True, "decompose_factor": 4}])
def test_lokr_is_the_kronecker_product(options: dict[str, Any]) -> None:
    attachment = attached("lokr", "llama", alpha=6, target_modules=["ffn.up"], **options)
    disturb(attachment)
    own = dict(attachment.placed[0].part.named_parameters())
    first = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
    second = own["lokr_w2"] if "lokr_w2" in own else own["lokr_w2_a"] @ own["lokr_w2_b"]
    x, y = torch.randn(2, 5, 32), torch.randn(2, 5, 48)
    expected = y + 6 / options["r"] * x @ torch.kron(first, second).T
    torch.testing.assert_close(attachment.placed[0].part(x, y), expected, atol=1e-5, rtol=1e-5)
    a, c = (4, 4) if options["r"] == 1 else (6, 4)
    b, d = 48 // a, 32 // c
    r = options["r"]
    sizes = {2: a * c + 2 * (b + d), 64: a * c + b * d, 1: (a + c) + (b + d)}
    assert numbers(attachment.trainable_parameters()) == 2 * sizes[r]


def test_factorisation_is_hf_pefts() -> None:
    from peft.tuners.lokr.layer import factorization

    for width in (1, 6, 7, 12, 48, 97, 576, 768, 11008):
        for factor in (-1, 1, 2, 3, 5, 16, 10**6):
            assert factorisation(width, factor) == factorization(width, factor), (width, factor)


def test_dropout_of_lokr_is_one_for_all_rows_of_a_step() -> None:
    attachment = attached("lokr", "llama", r=2, rank_dropout=0.5, target_modules=["attn.q"])
    disturb(attachment)
    part = attachment.placed[0].part.train()
    torch.manual_seed(3)
    changed = part(torch.randn(4, 6, 32), torch.zeros(4, 6, 32)) != 0
    assert 4 < int(changed[0, 0].sum()) < 28 and bool((changed == changed[0, 0]).all())
    part.rank_dropout, part.module_dropout = 0.0, 0.5
    whole = {bool(part(torch.randn(1, 1, 32), torch.zeros(1, 1, 32)).any()) for _ in range(20)}
    assert whole == {True, False}


def test_places_are_those_of_hf_peft() -> None:
    from peft.tuners.shira.mask_functions import random_mask

    for seed in (None, 3):
        mask = random_mask(torch.nn.Linear(7, 9), 2, random_seed=seed)
        assert torch.equal(torch.stack(torch.where(mask)).int(), random_places(9, 7, 2 * 16, seed))


def test_the_largest_weights_are_trained() -> None:
    attachment = attached("shira", "llama", r=2, mask_type="magnitude", target_modules=["attn.q"])
    attachment.initialise(attachment.model)
    weight = attachment.model.get_parameter(f"{attachment.placed[0].key}.weight").abs()
    rows, columns = attachment.state_dict()[f"{attachment.placed[0].key}.shira_indices"].long()
    assert len(rows) == 2 * 64
    assert weight[rows, columns].min() >= weight.flatten().sort(descending=True).values[2 * 64 - 1]


def test_a_place_outside_the_weight_is_refused() -> None:
    attachment = attached("shira", "llama", r=2, target_modules=["attn.q"])
    state = {key: tensor.clone() for key, tensor in attachment.state_dict().items()}
    key = next(key for key in state if key.endswith("shira_indices"))
    state[key][1, 0] = 32
    with pytest.raises(UserError, match=r"q_proj: shira_indices has places outside its weight, which is 32 x 32"):
        attachment.load_state_dict(state)
    params = registry.info("shira").params(r=2, target_modules=["attn.q"])
    rules = registry.method("shira").merge_rules(read_anatomy(attachment.model), params, state)
    with pytest.raises(UserError, match="outside its weight"):
        rules[key.replace("shira_indices", "weight")].apply(torch.zeros(32, 32))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("miss", {}, "r 64 is above its 32 inputs"),
        ("miss", {"r": 5, "init_weights": "bat"}, "r 5 does not divide its 32 x 32"),
        ("miss", {"r": 8, "init_weights": "mini", "mini_r": 5}, "mini_r 5 does not divide its 32 outputs"),
        ("shira", {}, "the largest r is 16"),
        ("hira", {"rank_pattern": {"nothing": 3}}, "'nothing' matches none of the 4 targets"),
        ("lokr", {"alpha_pattern": {"nothing": 3}}, "'nothing' matches none of the 4 targets"),
        ("lokr", {"target_modules": ["embeddings"]}, "embedding table"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attached(name, "llama", **options)
