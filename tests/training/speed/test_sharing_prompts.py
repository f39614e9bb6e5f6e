"""A prompt computed once for both answers to it: the same losses and gradients from fewer tokens, and only where both
answers see of it what each would see alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from peftcli.data.rows.packing import join
from peftcli.data.rows.row_set import Row
from peftcli.data.rows.shared_prompts import join_sharing, shared_tokens
from peftcli.layers.cpu import document_attention as module
from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.joined_documents import Documents
from peftcli.models.packed_documents import logits_of
from peftcli.training.run import train
from peftcli.training.speed import sharing_prompts
from peftcli.training.speed.fast_paths import AllowedPaths
from peftcli.training.speed.sharing_prompts import prompts_are_shared
from tests.tiny import tiny_model
from tests.training.start.test_reference_rows import pairs
from tests.training.test_every_method import METHODS, SMALL

TRIED = Documents((12, 6), (0, 5))


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> list[Documents]:
    """The documents of each call of attention in which one continues another; those of the trial are left out."""
    seen: list[Documents] = []
    original = module.DocumentAttention.__call__

    def counted(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        if out is not None and self.documents.share and self.documents != TRIED:
            seen.append(self.documents)
        return out

    monkeypatch.setattr(module.DocumentAttention, "__call__", counted)
    return seen


def options(**change: Any) -> dict[str, Any]:
    return {"data__val_set_size": 0, "training__learning_rate": 0.01, "training__max_steps": 3, **change}


def both_ways(recipe, recorder, sharing: list[Documents], family: str = "llama", **change: Any) -> list[list[float]]:
    """Return losses and gradient norms of a run that shares prompts, and of one that does not."""
    found = []
    for on in (True, False):
        recorder.steps.clear()
        sharing.clear()
        switches = {"shared_prompts": on}
        whole = options(training__fast_paths=switches, **change)
        train(recipe(family, "preference", pairs(16), name=f"sharing{on}", **whole), reporter=recorder)
        assert bool(sharing) == on
        found.append([*recorder.losses, *(step.grad_norm for step in recorder.steps)])
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"training__gradient_checkpointing": True},
        {"training__max_tokens_per_micro_batch": 30},
        {"training__reference": "live"},
        {"training__loss_type": "orpo"},
        {"training__bf16": True},
    ],
    ids=["plain", "recomputed", "split", "live", "orpo", "bf16"],
)
def test_learns_the_same(recipe, recorder, sharing, family, change) -> None:
    shared, apart = both_ways(recipe, recorder, sharing, family, **change)
    assert shared == pytest.approx(apart, rel=5e-2 if "training__bf16" in change else 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_same(recipe, recorder, sharing, name: str) -> None:
    family = "gpt2" if name == "bitfit" else "llama"
    small = {**SMALL.get(name, {})} | ({"tinit": 1, "tfinal": 1} if name == "adalora" else {})
    found = []
    for on in (True, False):
        recorder.steps.clear()
        whole = options(training__fast_paths={"shared_prompts": on}, method={"name": name, **small})
        train(recipe(family, "preference", pairs(16), name=f"{name}{on}", **whole), reporter=recorder)
        found.append(list(recorder.losses))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"method__lora_dropout": 0.1},
        {"training__fast_paths": {"padding_free": False}},
        {"model__attn_implementation": "sdpa"},
    ],
)
def test_not_with_dropout_nor_where_rows_are_padded(recipe, sharing, change) -> None:
    train(recipe("llama", "preference", pairs(8), **options(training__max_steps=1, **change)))
    assert not sharing


def test_a_lack_of_memory_in_the_trial_is_no_answer(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recipe("llama", "preference", pairs(4)).recipe

    def without_memory(model, **inputs):
        if "position_ids" in inputs:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
        return logits_of(model, **inputs)

    monkeypatch.setattr(sharing_prompts, "logits_of", without_memory)
    with pytest.raises(RuntimeError, match="can't allocate"):
        prompts_are_shared(spec, tiny_model("llama", "causal_lm"), AllowedPaths.of(spec, torch.device("cpu")), dict)


def test_not_with_a_window_of_attention(recipe, models, sharing) -> None:
    narrow = models("mistral", sliding_window=4)
    train(recipe("mistral", "preference", pairs(8), model=narrow, **options(training__max_steps=1)))
    assert not sharing


def row(ids: list[int], first_label: int) -> Row:
    tokens = np.array(ids, dtype=np.int32)
    labels = np.where(np.arange(len(ids)) < first_label, -100, tokens).astype(np.int32)
    return Row(tokens, labels, "file", 1)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (row([1, 2, 3, 7, 8], 3), row([1, 2, 3, 9], 3), 2),  # the last token of the prompt predicts two different ones
        (row([1, 2, 3, 7], 3), row([1, 2, 3, 7, 9], 3), 2),  # a label is nobody's prompt
        (row([1, 2, 3, 7], 3), row([1, 5, 3, 9], 3), 0),
        (row([4, 7], 1), row([4, 9], 1), 0),
        (row([1, 2, 3, 7], 3), row([1, 2, 3, 9], 2), 1),
    ],
)
def test_what_is_shared(first: Row, second: Row, shared: int) -> None:
    assert shared_tokens(first, second) == shared


def test_a_second_answer_goes_on_from_the_prompt() -> None:
    pair = Row(
        np.array([1, 2, 3, 7, 8, 1, 2, 3, 9], dtype=np.int32),
        np.array([-100, -100, -100, 7, 8, -100, -100, -100, 9], dtype=np.int32),
        "file",
        1,
        token_type_ids=np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=np.uint8),
    )
    whole = join_sharing([pair, pair])
    assert whole.input_ids.tolist() == [1, 2, 3, 7, 8, 3, 9] * 2
    assert whole.position_ids is not None
    assert whole.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 3] * 2
    assert np.asarray(whole.labels).tolist() == [-100, -100, -100, 7, 8, -100, 9] * 2
    assert Documents.at(whole.position_ids.tolist()) == Documents((5, 2, 5, 2), (0, 2, 0, 2))


def test_a_document_of_one_token_is_one() -> None:
    assert Documents.at([0, 0, 1, 0]) == Documents((1, 2, 1), (0, 0, 0))
    assert Documents.at(join([row([5, 6], 1), row([7], 1)]).position_ids.tolist()) == Documents((2, 1), (0, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [4, 2])
def test_attention_behind_a_shared_beginning(dtype: torch.dtype, groups: int) -> None:
    """Against each answer's own attention with the prompt before it."""
    torch.manual_seed(0)
    documents = Documents((5, 3, 4), (0, 2, 0))
    query, key, value = (torch.randn(1, heads, 12, 8, dtype=dtype) for heads in (4, groups, groups))
    number = torch.arange(3).repeat_interleave(torch.tensor(documents.lengths))
    mask = ((number[:, None] == number) & torch.ones(12, 12).tril().bool())[None, None]
    with CpuPaths(documents=DocumentAttention(documents)):
        got = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=groups != 4)
    wanted = []
    for places, own in (([0, 1, 2, 3, 4], 5), ([0, 1, 5, 6, 7], 3), ([8, 9, 10, 11], 4)):
        alone = (tensor[:, :, places] for tensor in (query, key, value))
        wanted.append(F.scaled_dot_product_attention(*alone, is_causal=True, enable_gqa=groups != 4)[:, :, -own:])
    assert torch.allclose(got, torch.cat(wanted, 2), atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_another_mask_is_no_silent_mistake() -> None:
    query = torch.randn(1, 2, 5, 8)
    paths = CpuPaths(documents=DocumentAttention(Documents((3, 2), (0, 1))))
    with paths, pytest.raises(ValueError, match="shared_prompts"):
        F.scaled_dot_product_attention(query, query, query, torch.ones(1, 1, 5, 5).tril().bool())
    with paths, pytest.raises(ValueError, match="shared_prompts"):
        F.scaled_dot_product_attention(query, query, query, is_causal=True)
