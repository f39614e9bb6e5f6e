"""Families that the table does not know, and roles that the recipe names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from peftcli.analysis.contract_models import bare
from peftcli.analysis.support.tiny_types import tiny_type
from peftcli.errors import UserError
from peftcli.models.families import fused_layouts
from peftcli.models.module_view import ModuleView
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.structure.unknown_family import structural_row
from tests.models.inputs import task_of
from tests.tiny import FAMILIES, tiny_model

LLAMA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {
    "vocab_size": 128,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _unknown(model_type: str, auto: str = "AutoModelForCausalLM", **settings: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **settings)
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, auto).from_config(config)
    return model


def test_an_unknown_decoder_is_found_by_names_and_shapes() -> None:
    anatomy = read_anatomy(_unknown("stablelm", **LLAMA))
    assert anatomy.origin == "structure"
    assert anatomy.layers == {"decoder": ("model.layers.0", "model.layers.1")}
    modules = {linear.role: linear.module for linear in anatomy.linears if linear.layer == 1}
    assert modules == {
        "attn.q": "model.layers.1.self_attn.q_proj",
        "attn.k": "model.layers.1.self_attn.k_proj",
        "attn.v": "model.layers.1.self_attn.v_proj",
        "attn.o": "model.layers.1.self_attn.o_proj",
        "ffn.gate": "model.layers.1.mlp.gate_proj",
        "ffn.up": "model.layers.1.mlp.up_proj",
        "ffn.down": "model.layers.1.mlp.down_proj",
    }
    assert next((a.module, a.heads, a.kv_heads, a.head_dim) for a in anatomy.attentions) == (
        "model.layers.0.self_attn",
        4,
        2,
        8,
    )
    assert "stablelm is not a known family" in anatomy.notes[0]
    assert "attn.q = self_attn.q_proj" in anatomy.notes[1]


def test_an_unknown_encoder_with_a_head_is_found() -> None:
    settings = {**LLAMA, "type_vocab_size": 1}
    del settings["num_key_value_heads"]
    anatomy = read_anatomy(_unknown("camembert", "AutoModelForSequenceClassification", **settings))
    assert list(anatomy.layers) == ["encoder"]
    assert anatomy.head == ("classifier",)
    assert anatomy.embeddings == "roberta.embeddings.word_embeddings"
    assert {block.exit for block in anatomy.blocks if block.layer == 0} == {
        "roberta.encoder.layer.0.attention.output.dense",
        "roberta.encoder.layer.0.output.dense",
    }


def test_an_unknown_encoder_decoder_has_both_stacks() -> None:
    sizes = {f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 48))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    anatomy = read_anatomy(_unknown("m2m_100", "AutoModelForSeq2SeqLM", vocab_size=128, d_model=32, **sizes, **heads))
    assert {stack: len(paths) for stack, paths in anatomy.layers.items()} == {"encoder": 2, "decoder": 2}
    assert "cross_attn.v" in anatomy.roles()
    assert {a.kind for a in anatomy.attentions} == {"self", "cross"}
    assert anatomy.embeddings == "model.encoder.embed_tokens"


# What structure alone cannot see: fused layouts, ALBERT's shared `ffn` linear.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])
def test_structure_agrees_with_the_table_on_whole_projections(family: str) -> None:
    with torch.device("meta"):
        model = tiny_model(family, task_of(family))
    table = read_anatomy(model)
    assert isinstance(model, PreTrainedModel)
    row, _ = structural_row(ModuleView(model), model.config)
    base = ModuleView(model)
    found = set()
    for stack in row.stacks:
        for path in base.expand(stack.layers):
            for role, specs in stack.linears.items():
                found |= {(role, f"{path}.{spec}") for spec in specs if f"{path}.{spec}" in base.modules}
    assert found == {(linear.role, linear.module) for linear in table.linears if linear.slice is None}


def test_a_fused_projection_of_unknown_layout_is_named_as_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(fused_layouts._LAYOUTS, "mpt")
    anatomy = read_anatomy(_unknown("mpt", vocab_size=128, d_model=32, n_heads=4, n_layers=2))
    assert "attn.q" not in anatomy.roles()
    assert "unknown layout" in dict(anatomy.left_out)["transformer.blocks.0.attn.Wqkv"]


def test_the_recipe_names_the_roles_of_a_fused_projection() -> None:
    roles = {"attn.q": "attn.c_attn", "attn.k": "attn.c_attn", "attn.v": "attn.c_attn"}
    anatomy = read_anatomy(_unknown("gpt_bigcode", **GPT), roles)
    assert anatomy.origin == "recipe"
    sizes = {linear.role: linear.out_features for linear in anatomy.linears if linear.layer == 0}
    assert (sizes["attn.q"], sizes["attn.k"], sizes["attn.v"]) == (32, 8, 8)  # multi-query: one key and value head
    assert "ffn.up" in sizes


def test_the_recipe_says_that_a_fused_projection_is_interleaved() -> None:
    path = "self_attn.query_key_value@per_head"
    settings = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    anatomy = read_anatomy(_unknown("persimmon", **settings), {"attn.q": path, "attn.k": path, "attn.v": path})
    value = next(linear for linear in anatomy.linears if linear.role == "attn.v")
    assert value.slice is not None
    assert (value.slice.groups, value.slice.width, value.slice.start, value.slice.size) == (4, 24, 16, 8)


def test_the_recipe_overrides_one_role_of_a_known_family() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    anatomy = read_anatomy(model, {"ffn.up": ["mlp.up_proj", "mlp.gate_proj"]})
    ups = [linear.module for linear in anatomy.linears if linear.role == "ffn.up" and linear.layer == 0]
    assert ups == ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"]
    assert {"attn.q", "attn.k", "attn.v", "attn.o"} <= set(anatomy.roles())


def test_every_wrong_name_of_the_recipe_is_reported_with_the_nearest() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    with pytest.raises(UserError) as caught:
        read_anatomy(model, {"attn.q": "self_attn.q_prj", "attn.x": "self_attn.k_proj", "embeddings": "nothing"})
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "self_attn.q_proj" in text
    assert "'attn.x' is not a role" in text
    assert "embed_tokens" in text


def test_layers_that_match_nothing_name_the_lists_of_blocks() -> None:
    with pytest.raises(UserError, match=r"no blocks match 'blocks\.\*'\n.*layers"):
        read_anatomy(_unknown("stablelm", **LLAMA), {"layers": "blocks"})


WITH_TABLES = [
    ("camembert", "sequence_classification", "roberta"), ("biogpt", "causal_lm", "offset"),
    ("yoso", "sequence_classification", "more rows"),
    ("openai-gpt", "causal_lm", "plain"), ("xlm", "sequence_classification", "plain"), ("gptj", "causal_lm", "buffer"),
    ("mpt", "causal_lm", "biases"), ("marian", "seq2seq_lm", "both sides"),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "task", "kind"), WITH_TABLES, ids=lambda value: value)
def test_a_row_has_as_many_tokens_as_a_table_has_positions(model_type: str, task: str, kind: str) -> None:
    model = bare(tiny_type(model_type, task))
    most = read_anatomy(model).max_positions
    assert most is not None
    for tokens in (most, most + 1):
        ids = torch.full((1, tokens), 5)
        inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if task == "seq2seq_lm" else {})}
        if tokens == most:
            with torch.no_grad():
                model(**inputs)
            continue
        with pytest.raises((IndexError, RuntimeError)), torch.no_grad():
            model(**inputs)


def test_a_decoder_beside_an_encoder_has_positions_of_its_own() -> None:
    from transformers import LEDConfig, LEDForConditionalGeneration

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    places = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 16, "attention_window": 8}
    model = LEDForConditionalGeneration(LEDConfig(vocab_size=32, d_model=16, **sizes, **places)).eval()
    anatomy = read_anatomy(model)
    assert (anatomy.max_positions, anatomy.max_target_positions) == (64, 16)
    ids = torch.full((1, 64), 5)
    with torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids[:, :16])
        with pytest.raises(IndexError):
            model(input_ids=ids, decoder_input_ids=ids[:, :17])
    assert read_anatomy(bare(tiny_type("marian", "seq2seq_lm"))).max_target_positions is not None


UNBOUND = [("stablelm", "causal_lm"), ("umt5", "seq2seq_lm"), ("fsmt", "seq2seq_lm")]


@pytest.mark.parametrize(("model_type", "task"), UNBOUND)
def test_rotary_and_relative_positions_and_tables_that_grow_bound_no_row(model_type: str, task: str) -> None:
    assert read_anatomy(bare(tiny_type(model_type, task))).max_positions is None
