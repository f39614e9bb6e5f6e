"""Full fine-tuning and freezing: what moves, what does not."""

from __future__ import annotations

import pytest
import torch

from peftcli.errors import UserError
from peftcli.methods.freeze import METHOD as FREEZE
from peftcli.methods.freeze import FreezeParams
from peftcli.methods.full import METHOD as FULL
from peftcli.methods.full import FullParams
from peftcli.protocol.apply_method import apply_method
from tests.methods.harness import attached, batch_for, frozen, frozen_without_gradient, numbers, train_steps


def test_records() -> None:
    for method in (FULL, FREEZE):
        assert method.info.artifact == "model" and not method.info.quantised_base
        assert method.info.unmergeable is None


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_full_trains_everything_once(family: str) -> None:
    model, anatomy = frozen(family)
    attachment = apply_method(model, anatomy, FullParams())
    assert numbers(attachment.trainable_parameters()) == sum(p.numel() for p in model.parameters())
    assert train_steps(attachment, batch_for(model)) == set(attachment.trainable_parameters())


def test_full_leaves_what_the_architecture_keeps_fixed() -> None:
    attachment = attached("full", "pegasus")
    tables = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    assert {name for name, _ in attachment.model.named_parameters()} - set(attachment.unfrozen) == tables
    assert train_steps(attachment, batch_for(attachment.model)) == set(attachment.unfrozen)


@pytest.mark.parametrize(
    ("family", "prefixes"),
    [("bert", ("bert.encoder.layer.1.",)), ("gpt2", ("transformer.h.1.",)), ("t5", ("decoder.block.1.",))],
)
def test_the_last_blocks_are_next_to_the_output(family: str, prefixes: tuple[str, ...]) -> None:
    attachment = attached("freeze", family, num_layers=1)
    names = set(attachment.unfrozen)
    assert names == {name for name, _ in attachment.model.named_parameters() if name.startswith(prefixes)}
    assert train_steps(attachment, batch_for(attachment.model)) == names
    assert frozen_without_gradient(attachment)


def test_norms_only() -> None:
    names = attached("freeze", "llama", trainable="norms").unfrozen
    assert len(names) == 5 and all("norm" in name for name in names)


def test_a_block_that_runs_twice_counts_as_two() -> None:
    names = attached("freeze", "albert", num_layers=2).unfrozen
    assert names and all(".albert_layer_groups.0." in name for name in names)
    with pytest.raises(UserError, match="num_layers is 3, but this albert model has 2 blocks"):
        apply_method(*frozen("albert"), FreezeParams(num_layers=3))


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="num_layers is 3, but this llama model has 2 blocks"):
        apply_method(*frozen("llama"), FreezeParams(num_layers=3))


def test_only_what_was_trained_changes() -> None:
    attachment = attached("freeze", "bert", num_layers=1)
    before = {name: p.clone() for name, p in attachment.model.named_parameters()}
    train_steps(attachment, batch_for(attachment.model))
    moved = {name for name, p in attachment.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(attachment.unfrozen)


def test_without_blocks_the_head_alone_is_trained_and_what_has_none_is_refused() -> None:
    attachment = apply_method(*frozen("bert", "sequence_classification"), FreezeParams(num_layers=0))
    assert set(attachment.trainable_parameters()) == set(attachment.head) and attachment.head
    assert train_steps(attachment, batch_for(attachment.model)) == set(attachment.head)
    with pytest.raises(UserError, match="num_layers is 0, which trains the task head alone, but this task adds no"):
        apply_method(*frozen("llama"), FreezeParams(num_layers=0))
    saved = apply_method(*frozen("llama"), FreezeParams(num_layers=0, modules_to_save=["embed_tokens"]))
    assert list(saved.trainable_parameters()) == ["model.embed_tokens.weight"]


def test_a_frozen_head_leaves_nothing_to_train() -> None:
    with pytest.raises(UserError, match="would train nothing"):
        apply_method(*frozen("bert", "sequence_classification"), FreezeParams(num_layers=0), train_head=False)
