"""Blocks of one list may differ: every block has its own roles and branches, found by what it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from tests.models.structure.small_models import MODELS, small_model


def _roles(anatomy: Anatomy, layer: int) -> dict[str, str]:
    return {linear.role: linear.module.split(f".{layer}.", 1)[1] for linear in anatomy.linears if linear.layer == layer}


def _branches(anatomy: Anatomy, layer: int) -> dict[str, tuple[str, str]]:
    return {
        block.kind: (block.entry.split(f".{layer}.", 1)[1], block.exit.split(f".{layer}.", 1)[1])
        for block in anatomy.blocks
        if block.layer == layer
    }


def test_dense_and_sparse_blocks_have_their_own_roles_and_branches() -> None:
    anatomy = read_anatomy(small_model("deepseek_v3"))
    assert _roles(anatomy, 0)["ffn.down"] == "mlp.down_proj"
    assert _roles(anatomy, 1)["ffn.down"] == "mlp.shared_experts.down_proj"
    assert _branches(anatomy, 0)["ffn"] == ("mlp.gate_proj", "mlp.down_proj")
    assert _branches(anatomy, 1)["ffn"] == ("mlp", "mlp")  # the experts work beside the shared one


def test_latent_attention_has_the_roles_of_queries_keys_and_values() -> None:
    anatomy = read_anatomy(small_model("deepseek_v3"))
    for layer in (0, 1):
        roles = _roles(anatomy, layer)
        assert (roles["attn.q"], roles["attn.k"], roles["attn.v"], roles["attn.o"]) == (
            "self_attn.q_b_proj",
            "self_attn.kv_b_proj",
            "self_attn.kv_b_proj",
            "self_attn.o_proj",
        )
        assert _branches(anatomy, layer)["attn"] == ("self_attn.q_a_proj", "self_attn.o_proj")
    slices = {each.role: each.slice for each in anatomy.linears if each.layer == 0 and each.slice is not None}
    assert (slices["attn.k"].groups, slices["attn.k"].width, slices["attn.k"].size) == (4, 14, 8)
    assert (slices["attn.v"].start, slices["attn.v"].size) == (8, 6)
    assert not anatomy.attentions  # keys and values of different widths take no prefix
    assert anatomy.prefix_route is None
    assert "compresses" in str(anatomy.prefix_reason)


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_text"])
def test_a_query_projection_with_a_gate_is_divided_by_heads(family: str) -> None:
    anatomy = read_anatomy(small_model(family))
    roles = {each.role: each for each in anatomy.linears if each.layer == 1}
    query, gate = roles["attn.q"].slice, roles["attn.gate"].slice
    assert query is not None
    assert gate is not None
    assert (query.groups, query.width, query.start, query.size) == (4, 16, 0, 8)
    assert (gate.start, gate.size) == (8, 8)
    (attention,) = anatomy.attentions
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (4, 2, 8)
    assert anatomy.without_attention == ("model.layers.0",)
    assert _roles(anatomy, 0)["attn.o"] == "linear_attn.out_proj"
    assert _roles(anatomy, 1)["attn.o"] == "self_attn.o_proj"


def test_blocks_that_narrow_the_stream_have_roles_and_branches_at_their_own_width() -> None:
    """MobileBERT: 32 features between blocks, 16 within; values alone are made from the 32."""
    config = AutoConfig.for_model(
        "mobilebert",
        vocab_size=64,
        hidden_size=32,
        embedding_size=16,
        intra_bottleneck_size=16,
        intermediate_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_feedforward_networks=2,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    anatomy = read_anatomy(model)
    roles = {role: path.split(".", 1)[0] for role, path in _roles(anatomy, 1).items()}
    assert roles == dict.fromkeys(["attn.q", "attn.k", "attn.v", "attn.o"], "attention") | {
        "ffn.up": "intermediate",
        "ffn.down": "output",
    }
    assert _roles(anatomy, 1)["ffn.down"] == "output.dense"  # not that of the bottleneck
    assert _branches(anatomy, 0)["attn"] == ("attention.self.query", "attention.output.dense")
    assert {block.width for block in anatomy.blocks} == {16}
    apply_method(model, anatomy, registry.info("adapter").params.model_validate({"name": "adapter"}))
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 2)


def test_gate_and_up_in_one_projection_have_their_roles() -> None:
    anatomy = read_anatomy(small_model("glm4"))
    pieces = {each.role: each.slice for each in anatomy.linears if each.layer == 0 and each.slice is not None}
    assert {role: (piece.start, piece.size) for role, piece in pieces.items()} == {
        "ffn.gate": (0, 48),
        "ffn.up": (48, 48),
    }
    assert _branches(anatomy, 0)["ffn"] == ("mlp.gate_up_proj", "post_mlp_layernorm")


@pytest.mark.parametrize(
    "family",
    [
        "deepseek_v3",
        "axk2",
        "qwen3_5_text",
        "glm4",
        "jamba",
        "mpt",
        "persimmon",
        "gpt_bigcode",
        "codegen",
        "openai-gpt",
        "nemotron_h",
    ],
)
def test_one_token_alone_is_moved_by_values_and_gates_not_by_queries_and_keys(family: str) -> None:
    """A softmax over one token is one: this tells the roles of a fused projection apart, whatever its layout."""
    model = small_model(family, meta=False)
    anatomy = read_anatomy(model)
    ids = torch.tensor([[7]])
    before = model(input_ids=ids, use_cache=False).logits
    softmax = {role.layer for role in anatomy.attentions} or set(range(2))
    for linear in anatomy.linears:
        if linear.layer not in softmax or linear.role == "attn.o":
            continue
        delta = torch.randn(1, 1, linear.out_features, generator=torch.Generator().manual_seed(3))

        def hook(_module: Any, _args: Any, y: torch.Tensor, linear: Any = linear, delta: Any = delta) -> torch.Tensor:
            return linear.slice.add(y, delta) if linear.slice else y + delta

        handle = model.get_submodule(linear.module).register_forward_hook(hook)
        moved = (model(input_ids=ids, use_cache=False).logits - before).abs().max()
        handle.remove()
        assert (moved > 1e-4) == (linear.role not in ("attn.q", "attn.k")), (linear.role, linear.module, moved)


def test_experts_alone_are_a_branch_as_a_whole() -> None:
    anatomy = read_anatomy(small_model("gpt_oss"))
    assert {layer: _branches(anatomy, layer)["ffn"] for layer in (0, 1)} == {0: ("mlp", "mlp"), 1: ("mlp", "mlp")}
    assert "ffn.down" not in anatomy.roles()


def test_experts_with_a_norm_behind_them_are_a_branch_as_a_whole() -> None:
    anatomy = read_anatomy(small_model("axk1"))
    assert _branches(anatomy, 1)["ffn"] == ("mlp", "mlp")


def test_a_state_space_takes_the_place_of_attention() -> None:
    anatomy = read_anatomy(small_model("jamba"))
    assert anatomy.layers == {"decoder": ("model.layers.0", "model.layers.1")}
    assert _branches(anatomy, 0) == {
        "attn": ("mamba", "mamba"),
        "ffn": ("feed_forward.gate_proj", "feed_forward.down_proj"),
    }
    assert _branches(anatomy, 1)["attn"] == ("self_attn.q_proj", "self_attn.o_proj")
    assert _branches(anatomy, 1)["ffn"] == ("feed_forward", "feed_forward")
    assert anatomy.without_attention == ("model.layers.0",)


def test_one_name_for_every_branch_is_told_apart_by_what_is_behind_it() -> None:
    anatomy = read_anatomy(small_model("nemotron_h"))
    assert [_branches(anatomy, layer) for layer in range(4)] == [
        {"attn": ("mixer", "mixer")},
        {"attn": ("mixer.q_proj", "mixer.o_proj")},
        {"ffn": ("mixer.up_proj", "mixer.down_proj")},
        {"ffn": ("mixer", "mixer")},
    ]
    assert [role.layer for role in anatomy.attentions] == [1]


def test_linear_attention_is_no_attention_that_takes_keys_and_values() -> None:
    anatomy = read_anatomy(small_model("olmo_hybrid"))
    assert _roles(anatomy, 0)["attn.v"] == "linear_attn.v_proj"
    assert _branches(anatomy, 1)["ffn"] == ("mlp.gate_proj", "post_feedforward_layernorm")
    assert _branches(anatomy, 0)["ffn"] == ("mlp.gate_proj", "mlp.down_proj")  # this block has its norms in front
    assert [role.module for role in anatomy.attentions] == ["model.layers.1.self_attn"]


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_a_model_without_known_projections_has_its_blocks(family: str) -> None:
    anatomy = read_anatomy(small_model(family))
    assert len(anatomy.layers["decoder"]) == 2
    assert anatomy.roles() == []
    assert {block.kind for block in anatomy.blocks} == ({"attn"} if family == "mamba" else {"attn", "ffn"})


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
@pytest.mark.parametrize(
    "method",
    [{"name": "prompt_tuning"}, {"name": "bitfit"}, {"name": "full"}, {"name": "lora", "target_modules": "all-linear"}],
)
def test_methods_that_need_no_roles_train_a_model_without_any(family: str, method: dict[str, str]) -> None:
    model = small_model(family, meta=False)
    attachment = apply_method(model, read_anatomy(model), registry.info(method["name"]).params.model_validate(method))
    ids = torch.randint(5, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    model.train()(**attachment.prepare_inputs(batch), use_cache=False).loss.backward()
    grads = [parameter.grad for parameter in attachment.trainable_parameters().values()]
    assert grads
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_roles_that_a_model_lacks_are_refused_with_what_it_has() -> None:
    model = small_model("mamba")
    with pytest.raises(UserError, match=r"this mamba model has no attn\.q(.|\n)*all-linear"):
        apply_method(model, read_anatomy(model), registry.info("lora").params())


# Families with experts beside a shared one, experts alone, both kinds of attention, state spaces, fused projections.
@pytest.mark.parametrize(
    ("family", "adapters"),
    [
        ("deepseek_v3", 4),
        ("qwen3_next", 4),
        ("qwen2_moe", 4),
        ("gpt_oss", 4),
        ("llama4_text", 4),
        ("glm4", 4),
        ("glm4_moe", 4),
        ("jamba", 4),
        ("nemotron_h", 4),
        ("olmo_hybrid", 4),
        ("mamba", 2),
        ("rwkv", 4),
    ],
)
@pytest.mark.parametrize("method", ["adapter", "parallel_adapter"])
def test_adapters_at_every_branch_of_every_block_train(family: str, adapters: int, method: str) -> None:
    model = small_model(family, meta=False)
    placement = "houlsby" if method == "adapter" else "both"
    params = registry.info(method).params.model_validate({"name": method, "placement": placement})
    attachment = apply_method(model, read_anatomy(model), params)
    assert len(attachment.placed) == adapters
    ids = torch.randint(5, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for placed in attachment.placed:
            for tensor in placed.part.parameters():
                tensor.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(2))
    loss = model.train()(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    dead = [
        f"{placed.key}.{name}"
        for placed in attachment.placed
        for name, tensor in placed.part.named_parameters()
        if tensor.grad is None or not tensor.grad.abs().sum() > 0
    ]
    assert not dead


def test_towers_of_images_take_no_part() -> None:
    """Text enters the language model alone: neither roles, norms nor biases of the other tower are named."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    text = {**MODELS["glm4"], "num_key_value_heads": 2, "sliding_window": 8}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    anatomy = read_anatomy(model)
    inside = "model.language_model."
    assert [path for paths in anatomy.layers.values() for path in paths if not path.startswith(inside)] == []
    assert anatomy.norms
    assert [norm for norm in anatomy.norms if not norm.startswith(inside)] == []
    assert anatomy.biases == ()  # Gemma 3 has none; those of the image tower never get a gradient from text


def test_a_tower_beside_the_blocks_of_text_takes_no_part() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "git", vocab_size=96, vision_config={**sizes, "image_size": 16, "patch_size": 8}, **sizes
    )
    anatomy = read_anatomy(AutoModelForCausalLM.from_config(config))  # its code reads values, so not on meta
    assert [len(paths) for paths in anatomy.layers.values()] == [2]
    assert [linear.module for linear in anatomy.linears if "image_encoder" in linear.module] == []
