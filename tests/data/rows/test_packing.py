"""Packing: full bins, restarting positions, and documents that cannot see each other, on live models."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftcli.data.rows.packing import PackedRows, best_fit
from peftcli.data.rows.padding import collate
from peftcli.data.rows.row_set import Row
from peftcli.errors import UserError
from peftcli.models.packed_documents import block_causal, packing_route
from tests.data.tools import ready, write_jsonl
from tests.tiny import tiny_model, tiny_tokenizer

ISOLATING = ("gpt2", "llama", "qwen2", "qwen3", "gemma3", "mistral", "opt")


def decoder_of(family: str) -> Any:
    """Return a tiny decoder without dropout whose documents attend to each other a little if only positions restart."""
    import transformers

    torch.manual_seed(0)
    if family == "xglm":
        config: Any = transformers.XGLMConfig(
            vocab_size=90, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=64
        )
        return transformers.XGLMForCausalLM(config).eval()
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, is_decoder=True
    )
    return transformers.BertLMHeadModel(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["xglm", "bert"])
def test_a_small_leak_is_a_leak(family: str, dtype: torch.dtype) -> None:
    """About a hundredth of a full leak if positions restart; a mask keeps documents apart, or packing is refused."""
    from peftcli.models.packed_documents import _packed

    model = decoder_of(family).to(dtype)
    try:
        route = packing_route(model)
    except UserError as error:
        assert family in str(error)
        return
    assert route != "positions"
    documents = [torch.arange(5, 5 + n)[None] for n in (30, 20, 12)]
    with torch.no_grad():
        packed = _packed(model, documents, route)
        alone = torch.cat([model(input_ids=ids).logits for ids in documents], dim=1).float()
    assert packed is not None
    torch.testing.assert_close(packed, alone, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)


def text_rows(path: Path, count: int = 12) -> Path:
    return write_jsonl(path, [{"prompt": "Hello " * (n % 5 + 1), "completion": "you are fine"} for n in range(count)])


@pytest.mark.parametrize("capacity", [10, 37, 100])
def test_bins_hold_every_row_once_and_are_nearly_full(capacity: int) -> None:
    lengths = np.random.default_rng(0).integers(1, capacity + 1, size=500).astype(np.int32)
    order, offsets = best_fit(lengths, capacity)
    assert sorted(order.tolist()) == list(range(500))
    sums = [int(lengths[order[a:b]].sum()) for a, b in pairwise(offsets.tolist())]
    assert max(sums) <= capacity and min(sums) > 0
    assert len(sums) <= 11 / 9 * np.ceil(lengths.sum() / capacity) + 1


def test_best_fit_equals_the_slow_loop() -> None:
    lengths = np.random.default_rng(1).integers(1, 30, size=200).astype(np.int32)
    bins: list[list[int]] = []
    for row in np.argsort(-lengths.astype(int), kind="stable").tolist():
        rooms = [(30 - int(lengths[b].sum()), place) for place, b in enumerate(bins)]
        fitting = [pair for pair in rooms if pair[0] >= lengths[row]]
        if fitting:
            bins[min(fitting)[1]].append(row)
        else:
            bins.append([row])
    _, offsets = best_fit(lengths, 30)
    assert len(offsets) - 1 == len(bins)


def test_best_fit_edges() -> None:
    assert best_fit(np.empty(0, np.int32), 8)[1].tolist() == [0]
    with pytest.raises(ValueError, match="a row of 9 tokens does not fit into 8"):
        best_fit(np.array([9], np.int32), 8)


def test_packed_rows_restart_positions_and_mask_first_labels(tokenizer: Any, tmp_path: Path) -> None:
    data = ready(tokenizer, text_rows(tmp_path / "a.jsonl"), max_length=60, packing=True)
    assert isinstance(data.train, PackedRows) and data.report.packed_rows == len(data.train) < 12
    assert data.train.lengths.tolist() == [len(row.input_ids) for row in data.train]
    seen = []
    for number, row in enumerate(data.train):
        members = data.train.members(number)
        seen += members
        assert row.position_ids is not None and row.documents is not None
        assert (np.flatnonzero(row.position_ids == 0) == np.cumsum([0, *(
            len(data.train.rows[m].input_ids) for m in members[:-1])])).all()  # fmt: skip
        assert (np.asarray(row.labels)[row.position_ids == 0] == -100).all()
        assert row.documents.max() == len(members) - 1
    assert sorted(seen) == list(range(12))
    learnt = sum(int((np.asarray(row.labels) >= 0).sum()) for row in data.train)
    assert learnt == data.report.supervised_tokens


def test_a_first_label_never_crosses_a_border() -> None:
    class Bare:
        lengths = np.array([3, 2], np.int32)

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            return (self[number] for number in range(2))

        def __getitem__(self, index: int) -> Row:
            ids = np.arange(1, self.lengths[index] + 1, dtype=np.int32)
            return Row(ids, ids, "a", index + 1)

    (row,) = PackedRows(Bare(), 8)
    assert np.asarray(row.labels).tolist() == [-100, 2, 3, -100, 2]


def test_packing_is_for_causal_models(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": n} for n in range(4)])
    with pytest.raises(UserError, match="packing is for causal_lm"):
        ready(tiny_tokenizer(cls=True), path, "sequence_classification", packing=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ISOLATING)
def test_a_packed_rows_logits_equal_the_rows_own(family: str, implementation: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    model.eval()
    data = ready(tokenizer, text_rows(tmp_path / "a.jsonl", 7), max_length=48, packing=True)
    packed = data.train
    assert isinstance(packed, PackedRows)
    batch = collate(list(packed), tokenizer, "text", packing_route=packing_route(model))
    labels = batch.pop("labels")
    assert labels.shape == batch["input_ids"].shape
    with torch.no_grad():
        together = model(**batch, use_cache=False).logits
        for place in range(len(packed)):
            start = 0
            for member in packed.members(place):
                ids = torch.from_numpy(packed.rows[member].input_ids.astype(np.int64))[None]
                alone = model(input_ids=ids, use_cache=False).logits[0]
                part = together[place, start : start + len(alone)]
                torch.testing.assert_close(part, alone, atol=2e-5, rtol=1e-4)
                start += len(alone)


def _as_flash_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, position_ids: Any = None, **words: Any
) -> tuple[Any, None]:
    """Attend as transformers' flash attention does: it looks at positions in a batch of one row, and not in others."""
    from torch.nn.functional import scaled_dot_product_attention as attend
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    packed = _is_packed_sequence(position_ids, query.shape[0])
    mask = block_causal(position_ids, "bool_mask") if packed else None
    found = attend(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return found.transpose(1, 2).contiguous(), None


def test_rows_are_joined_where_positions_are_looked_at_in_one_row_only(tmp_path: Path) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register("positions_in_one_row", _as_flash_attention)
    AttentionMaskInterface.register("positions_in_one_row", flash_attention_mask)
    model, tokenizer = tiny_model("llama").eval(), tiny_tokenizer()
    data = ready(tokenizer, text_rows(tmp_path / "a.jsonl", 7), max_length=20, packing=True)
    rows = list(data.train)
    assert len(rows) > 1 and packing_route(model) == "positions"
    two = collate(rows, tokenizer, "text")
    with torch.no_grad():
        apart = model(input_ids=two["input_ids"], position_ids=two["position_ids"], use_cache=False).logits
        model.set_attn_implementation("positions_in_one_row")
        assert packing_route(model) == "joined"
        batch = collate(rows, tokenizer, "text", packing_route="joined")
        assert "attention_mask" not in batch and len(batch["input_ids"]) == 1
        one = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    wanted = torch.cat([own[: len(row.input_ids)] for own, row in zip(apart, rows, strict=True)])
    torch.testing.assert_close(one, wanted, atol=2e-5, rtol=1e-4)
    assert batch["labels"][0].tolist() == [label for row in rows for label in np.asarray(row.labels).tolist()]


def test_a_family_that_leaks_is_refused() -> None:
    with pytest.raises(UserError, match="packed documents would attend to each other in the family bloom"):
        packing_route(tiny_model("bloom"))


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama").train()
    assert packing_route(model) == "positions" and model.training
