"""Trained rows of tokens in a merged model, as plain transformers loads it: with tied and untied heads, from 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftcli.inference.open_run import open_run
from peftcli.merging.merge_run import merge_run
from peftcli.training.run import train
from tests.merging.runs import make_run

LORA = {"name": "lora", "r": 2, "target_modules": ["attn.q"]}
TOKENS = ["<call>", "<done>"]
ROWS = [{"prompt": "<call> good cat", "completion": "<done> red"}, {"prompt": "bad <call>", "completion": "mat <done>"}]
EMBEDDINGS, HEAD = "model.embed_tokens", "lm_head"
ROWS_OF = "base_model.model.{}.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("tied", "indices", "model"),
    [
        (True, [9, 121], {}),
        (False, {"embeddings": [5, 9], "head": [7]}, {}),
        (False, {"embeddings": [5, 9], "head": [7]}, {"load_in_4bit": True}),
    ],
    ids=["tied", "untied", "4-bit"],
)
def test_just_the_rows_differ_from_the_base(tied: bool, indices: Any, model: dict[str, Any], tmp_path: Path) -> None:
    if model:
        pytest.importorskip("bitsandbytes")
    config = {"tie_word_embeddings": tied, "hidden_size": 64, "intermediate_size": 64}
    method = {**LORA, "trainable_token_indices": indices}
    run = make_run(tmp_path, "llama", "causal_lm", method, base_class="causal_lm", config=config, **model)
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified
    merged, base = (AutoModelForCausalLM.from_pretrained(tmp_path / folder) for folder in ("merged", "model"))
    assert merged.config.tie_word_embeddings is tied
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    wanted = {EMBEDDINGS: indices} if tied else {EMBEDDINGS: indices["embeddings"], HEAD: indices["head"]}
    for path, numbers in wanted.items():
        table, before = (one.get_submodule(path).weight for one in (merged, base))
        assert torch.equal(table[numbers], adapter[ROWS_OF.format(path)])
        others = [row for row in range(len(table)) if row not in numbers]
        assert torch.equal(table[others], before[others]) and not torch.equal(table[numbers], before[numbers])
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is tied


@pytest.mark.parametrize(("family", "bits"), [("gpt2", 16), ("llama", 16), ("llama", 4)])
def test_new_tokens_leave_with_the_merged_model(recipe: Any, family: str, bits: int, tmp_path: Path) -> None:
    if bits == 4:
        pytest.importorskip("bitsandbytes")
    loaded = recipe(
        family, "causal_lm", ROWS * 4, method=LORA, model__new_special_tokens=TOKENS, training__max_steps=2,
        training__learning_rate=0.01, model__load_in_4bit=bits == 4,
    )  # fmt: skip
    train(loaded)
    run = loaded.recipe.output_dir
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([tokenizer("<call> good cat <done>")["input_ids"]])
    numbers = tokenizer.convert_tokens_to_ids(TOKENS)
    table = merged.get_input_embeddings().weight
    assert len(table) == len(tokenizer) and set(numbers) <= set(ids[0].tolist())
    assert not torch.equal(table[numbers[0]], table[numbers[1]])
    opened = open_run(run)
    rows = opened.attachment.row_tensors()
    for path, own in opened.attachment.row_numbers().items():
        found = merged.get_submodule(path).weight[own]
        torch.testing.assert_close(found, rows[f"{path}.token_adapter.trainable_tokens_delta"].detach())
    if bits == 16:
        with torch.no_grad():
            torch.testing.assert_close(
                merged(input_ids=ids).logits, opened.attachment.model.eval()(input_ids=ids).logits, atol=1e-5, rtol=1e-5
            )
