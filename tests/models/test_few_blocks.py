"""What is tried on the first blocks of a model holds of all: each kind of block is among them, and all come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from peftcli.methods.lora import LoraParams
from peftcli.models.few_blocks import FirstBlocks
from peftcli.models.packed_documents import packing_route
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from tests.tiny import tiny_model

DEEP = {"num_hidden_layers": 6}


def live(family: str, lora: Mapping[str, Any], **changes: Any) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Return a model with LoRA, and its stacks."""
    model = tiny_model(family, "causal_lm", **changes)
    anatomy = read_anatomy(model)
    apply_method(model, anatomy, LoraParams(r=2, target_modules=["attn.q"], **lora))
    return model, anatomy.layers


def seen_by(model: PreTrainedModel, stacks: Mapping[str, Any], times: int = 1) -> Mapping[str, int]:
    """Return what a trial on the first blocks is told."""
    told: list[Mapping[str, int]] = []
    FirstBlocks(model, stacks).find(lambda stands_for: told.append(stands_for) or True, times=times)
    assert len(told) == 1
    return {path.rpartition(".")[2]: count for path, count in told[0].items()}


@pytest.mark.parametrize(
    ("lora", "once", "twice"),
    [
        # the first block has nothing trained in front of it
        ({}, {"0": 1, "1": 5}, {"0": 1, "1": 1, "2": 4}),
        ({"layers_to_transform": [0]}, {"0": 1, "1": 5}, {"0": 1, "1": 1, "2": 4}),
        ({"layers_to_transform": [1, 3]}, {"0": 1, "1": 1, "2": 3, "3": 1}, {"0": 1, "1": 1, "2": 1, "3": 1, "4": 2}),
        ({"layers_to_transform": [5]}, {}, {}),
        ({"rank_pattern": {"layers.4.self_attn.q_proj": 4}}, *[{"0": 1, "1": 1, "2": 1, "3": 2, "4": 1}] * 2),
    ],
    ids=["alike", "the first", "some", "the last", "of another rank"],
)
def test_each_kind_of_block_is_kept_and_stands_for_the_rest(lora, once, twice) -> None:
    model, stacks = live("llama", lora, **DEEP)
    assert [seen_by(model, stacks, times) for times in (1, 2)] == [once, twice]
    assert [name for name, _ in model.model.layers.named_children()] == list("012345")


def test_blocks_that_differ_by_a_setting_are_of_other_kinds() -> None:
    kinds = ["full_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"]
    model, stacks = live("qwen2", {}, num_hidden_layers=5, layer_types=kinds, use_sliding_window=True, sliding_window=4)
    assert "3" in seen_by(model, stacks)


def test_what_the_first_blocks_refuse_is_asked_of_all() -> None:
    model, stacks = live("llama", {}, **DEEP)
    asked: list[int] = []

    def trial(stands_for: Mapping[str, int]) -> str:
        asked.append(len(model.model.layers))
        if stands_for:
            raise IndexError("there is no block 5")
        return "whole"

    assert FirstBlocks(model, stacks).find(trial) == "whole" and asked == [2, 6]
    asked.clear()
    assert FirstBlocks(model, stacks).find(lambda told: asked.append(len(told)), settles=lambda _: False) is None
    assert asked == [2, 0]


def test_an_error_that_says_nothing_of_the_model_is_not_swallowed() -> None:
    model, stacks = live("llama", {}, **DEEP)

    def trial(_: Mapping[str, int]) -> bool:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        FirstBlocks(model, stacks).find(trial)
    assert len(model.model.layers) == 6


def test_a_leak_of_one_block_is_found() -> None:
    model, stacks = live("llama", {}, **DEEP)
    assert FirstBlocks(model, stacks).find(lambda _: packing_route(model, rows=1) == "positions")
    leak: Any = model.model.layers[4]
    leak.leaks = nn.Linear(1, 1)  # another build than that of the others
    leak.register_forward_hook(lambda _block, _args, out: out + out.cumsum(1))
    with pytest.raises(Exception, match="attend to each other"):
        FirstBlocks(model, stacks).find(lambda _: bool(packing_route(model, rows=1)))
