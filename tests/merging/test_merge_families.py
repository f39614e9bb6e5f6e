"""Merging where a layout is unusual: slices of fused projections, computed positions, weights stored (in, out)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from peftcli.analysis.support.tiny_types import tiny_type
from peftcli.merging.merge_run import merge_run
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.folding import Folding
from peftcli.recipe.yaml.dump_recipe import dump_recipe
from tests.merging.runs import make_recipe, make_run, save_random_adapter
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer

LORA: dict[str, Any] = {"name": "lora", "r": 4}
FUSED = [
    ("phi3", LORA),
    ("phi3", {**LORA, "target_modules": ["ffn.up"]}),
    ("phi3", {**LORA, "use_dora": True}),
    ("phi3", {"name": "ia3"}),
    ("falcon", LORA),
    ("modernbert", LORA),
]


@pytest.mark.parametrize(("family", "method"), FUSED)
def test_slices_of_fused_projections_merge(family: str, method: dict[str, Any], tmp_path: Path) -> None:
    task = "sequence_classification" if family == "modernbert" else "causal_lm"
    run = make_run(tmp_path, family, task, method, base_class="base" if family == "modernbert" else task)
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified and report.adapter_effect


@pytest.mark.parametrize("forced", [2, [2, 3]])
def test_texts_that_reach_the_limit_and_a_forced_end_are_the_same_alone(forced: Any, tmp_path: Path) -> None:
    """BART's settings force an end at the limit, which counts as no token of the text, here and there."""
    settings = {"forced_eos_token_id": forced, "eos_token_id": 2}
    run = make_run(tmp_path, "bart", "seq2seq_lm", LORA, base_class="seq2seq_lm", config={"init_std": 0.3})
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    assert merge_run(run, tmp_path / "merged").verified


def test_a_change_that_works_in_place_changes_its_own_rows_only() -> None:
    anatomy = read_anatomy(tiny_model("phi3", "causal_lm"))
    role = next(linear for linear in anatomy.linears if linear.role == "attn.k")
    assert role.slice is not None and role.slice.groups == 1  # whole rows of the weight: contiguous as they are

    def doubled(weight: Tensor) -> Tensor:
        return weight.mul_(2)

    folding = Folding(anatomy)
    folding.change_weight(role.key, doubled)
    before = torch.ones(role.slice.width, role.in_features)
    after = folding.rules()[f"{role.module}.weight"].apply(before.clone())
    rows = slice(role.slice.start, role.slice.start + role.slice.size)
    assert (after[rows] == 2).all() and after.sum() == before.sum() + before[rows].sum()


TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MARIAN = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "decoder_start_token_id": 0,
}  # fmt: skip
OPENAI_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@pytest.mark.parametrize("method", [{**LORA, "target_modules": "all-linear"}, {"name": "bitfit"}])
@pytest.mark.parametrize(("family", "sizes"), [("marian", MARIAN), ("openai-gpt", OPENAI_GPT)])
def test_families_outside_the_table_merge(
    family: str, sizes: dict[str, Any], method: dict[str, Any], tmp_path: Path
) -> None:
    """Marian computes its positions, and no file holds them; OpenAI GPT has Conv1D modules without a role."""
    task, auto = ("seq2seq_lm", AutoModelForSeq2SeqLM) if family == "marian" else ("causal_lm", AutoModelForCausalLM)
    auto.from_config(AutoConfig.for_model(family, **TOKENS, **sizes)).save_pretrained(tmp_path / "model")
    tiny_tokenizer(add_eos=family == "marian").save_pretrained(tmp_path / "model")
    assert merge_run(save_run(tmp_path, task, method), tmp_path / "merged", use_alone=False).verified


def save_run(folder: Path, task: str, method: dict[str, Any]) -> Path:
    """Return a run directory with a random adapter on the model in the folder."""
    recipe = make_recipe(folder, task, method, folder / "model")
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    save_random_adapter(run / "adapter", recipe, None, size=0.05, seed=1)
    return run


SHARED = "shared_transf.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("method", "unties"),
    [
        ({**LORA, "target_modules": "all-linear"}, ["blocks"]),
        ({**LORA, "target_modules": ["q_proj", "embed_tokens"]}, ["blocks", "head"]),
        ({**LORA, "target_modules": ["embed_tokens"]}, ["head"]),
        ({"name": "ln_tuning"}, []),
    ],
)
def test_blocks_that_share_a_tensor_have_their_own_where_it_changes(
    method: dict[str, Any], unties: list[str], tmp_path: Path
) -> None:
    """Zamba's blocks share an attention: each changes at its own place, and a merge writes it for each of them."""
    config = tiny_type("zamba", "causal_lm").made_config()
    config.vocab_size = VOCAB
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    run = save_run(tmp_path, "causal_lm", method)
    report = merge_run(run, tmp_path / "merged", use_alone=False)
    assert report.verified
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    first, second = (merged.get_parameter(f"model.layers.{layer}.{SHARED}") for layer in (1, 3))
    assert torch.equal(first, second) == ("blocks" not in unties)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == ("head" not in unties)
    assert any("no longer tied" in note for note in report.notes) == bool(unties)
