"""OFT against its definition: what is orthogonal, what the blocks are, where it merges, and COFT's bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.errors import UserError
from peftcli.layers.weight_changes.rotation import nearest_divisor, rotations_less_identity, skew
from peftcli.methods.oft import METHOD, OftParams
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
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
from tests.tiny import tiny_model


def test_cayleys_transform_is_orthogonal_and_the_series_is_near_it() -> None:
    angles = 0.1 * torch.randn(3, 28)
    q = skew(angles)
    assert torch.equal(q, -q.transpose(1, 2)) and torch.equal(q[0, 0, 1:], angles[0, :7])
    rotation = torch.eye(8) + rotations_less_identity(angles, None)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(8).expand(3, 8, 8))
    torch.testing.assert_close(rotation, (torch.eye(8) - q) @ torch.linalg.inv(torch.eye(8) + q), atol=1e-5, rtol=1e-5)
    series = torch.eye(8) + rotations_less_identity(angles, 24)
    torch.testing.assert_close(series, rotation.transpose(1, 2), atol=1e-5, rtol=1e-5)  # the other sign of Q
    assert not rotations_less_identity(torch.zeros(2, 6), 5).any()


@pytest.mark.parametrize(("width", "wanted", "size"), [(48, 32, 24), (576, 32, 32), (7, 3, 1), (8, 99, 8)])
def test_a_size_that_does_not_divide_becomes_the_nearest(width: int, wanted: int, size: int) -> None:
    assert nearest_divisor(width, wanted) == size


def test_an_adjusted_size_is_said() -> None:
    attachment = attached("oft", "llama", target_modules=["attn.q", "ffn.down"])
    assert attachment.notes == ["oft_block_size 32 does not divide the width 48 of ffn.down: 24 is used there"]
    by_number = attached("oft", "llama", r=3, oft_block_size=0, target_modules=["attn.q"])
    assert by_number.notes == ["r 3 does not divide the width 32 of attn.q: 2 is used there"]


def test_a_dropout_of_blocks_where_there_is_one_is_said() -> None:
    options = {"module_dropout": 0.5, "target_modules": ["attn.q", "ffn.down"]}
    (note,) = attached("oft", "llama", oft_block_size=0, r=1, **options).notes[:1]
    assert note == "module_dropout has no effect on attn.q: the width 32 is one block, which always turns"
    assert attached("oft", "llama", oft_block_size=8, **options).notes == []


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("llama", {"target_modules": ["attn.q", "ffn.down", "embeddings"], "use_cayley_neumann": False}),
        ("gpt2", {"block_share": True}),  # roles of a fused projection
        ("gpt2", {"target_modules": ["c_attn", "embeddings"]}),
        ("t5", {}),
    ],
)
def test_identity_gradients_round_trip_and_merge(family: str, options: dict[str, Any]) -> None:
    options = {"oft_block_size": 4, **options}
    attachment = attached("oft", family, **options)
    batch = batch_for(attachment.model)
    plain, _ = frozen(family)
    with torch.no_grad():
        assert torch.equal(logits_of(attachment, batch), plain(**batch).logits)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)
    disturb(attachment)
    live = logits_of(attachment, batch)
    fresh = attached("oft", family, **options)
    round_trip(attachment, fresh)
    assert torch.equal(logits_of(fresh, batch), live)
    rules = METHOD.merge_rules(read_anatomy(plain), OftParams(**options), attachment.state_dict())
    fold_(plain, rules)
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, live, atol=1e-5, rtol=1e-5)


def test_counts_and_shapes() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    attachment = apply_method(model, read_anatomy(model), OftParams(oft_block_size=8))
    assert numbers(attachment.trainable_parameters()) == attachment.saved_size() == 4 * (32 // 8) * (8 * 7 // 2)
    shared = attached("oft", "llama", oft_block_size=8, block_share=True)
    assert numbers(shared.trainable_parameters()) == 4 * (8 * 7 // 2)


def test_the_bound_of_coft_is_kept_after_each_step() -> None:
    attachment = attached("oft", "llama", oft_block_size=8, coft=True, eps=0.01)
    train_steps(attachment, batch_for(attachment.model), steps=3, lr=0.1)
    norms = [torch.linalg.norm(skew(angles), dim=(1, 2)) for angles in attachment.trainable_parameters().values()]
    assert all(bool((norm <= 0.01 / 2 * 1.0001).all()) for norm in norms)  # the root of 4 blocks
    assert any(bool((norm > 0.004).any()) for norm in norms), "the bound was never reached"


def test_blocks_that_do_not_turn() -> None:
    attachment = attached("oft", "llama", oft_block_size=8, module_dropout=0.5, target_modules=["attn.q"])
    disturb(attachment)
    part = attachment.placed[0].part
    x = torch.randn(5, 32)
    part.train()
    torch.manual_seed(1)
    moved = (part(x, x) - x).view(5, 4, 8).abs().amax((0, 2)) > 0
    assert 0 < int(moved.sum()) < 4
    part.eval()
    assert bool(((part(x, x) - x).view(5, 4, 8).abs().amax((0, 2)) > 0).all())


def test_a_width_without_a_near_divisor_is_refused() -> None:
    with pytest.raises(UserError, match="blocks of 1 feature"):
        attached("oft", "llama", r=32, oft_block_size=0)


@pytest.mark.parametrize("given", [{"r": 4}, {"oft_block_size": 0}])
def test_one_of_the_two_sizes(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="r and oft_block_size"):
        OftParams(**given)


def test_a_whole_weight_that_two_parts_change_is_refused() -> None:
    parts = [{"name": "oft", "oft_block_size": 8}, {"name": "lora", "r": 2}]
    attached("compose", "llama", parts=parts)  # a rotated input is seen by both
    with pytest.raises(UserError, match=r"what oft does depends on the whole weight of .*attn\.c_attn\.q"):
        attached("compose", "gpt2", parts=parts)
