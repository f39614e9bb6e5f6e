"""Every family of the table, on a live tiny model: the roles are what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.models.anatomy import Anatomy, BlockRole, LinearRole
from peftcli.models.families.family_table import FAMILIES as TABLE
from peftcli.models.module_view import module_kind
from peftcli.models.read_anatomy import read_anatomy
from tests.models.inputs import logits, task_of, watching
from tests.tiny import DECODERS, ENCODERS, FAMILIES, HEADS, HIDDEN, LAYERS, SEQ2SEQ, tiny_model

# Variants inside families, beside each family's tiny default.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("opt", {"do_layer_norm_before": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"multi_query": False}),
    ("falcon", {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    ("t5", {"feed_forward_proj": "gated-gelu"}),
    ("mt5", {"feed_forward_proj": "relu"}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("deberta-v2", {"share_att_key": True}),
    ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),
    ("qwen3_moe", {"mlp_only_layers": [0]}),
    ("modernbert", {"num_hidden_layers": 3}),
]
CASES = [(family, {}) for family in FAMILIES] + VARIANTS
_case = pytest.mark.parametrize(("family", "changes"), CASES, ids=[f"{f}-{'-'.join(c)}" if c else f for f, c in CASES])

ATTENTION = {"attn.q", "attn.k", "attn.v", "attn.o"}
CROSS = {"cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o"}
PLAIN_FFN = {"ffn.up", "ffn.down"}
GATED_FFN = {"ffn.up", "ffn.gate", "ffn.down"}
GATED = {"modernbert", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "mt5"}
SPARSE = {"mixtral", "qwen3_moe"}


def _read(family: str, changes: dict[str, Any], task: str | None = None) -> tuple[nn.Module, Anatomy]:
    model = tiny_model(family, task or task_of(family), **changes)
    return model, read_anatomy(model)


def test_every_family_of_the_table_has_a_tiny_model() -> None:
    assert set(TABLE) - {"gemma3"} == set(FAMILIES)  # gemma3 is gemma3_text inside an image model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_roles(family: str) -> None:
    _, anatomy = _read(family, {})
    expected = set(ATTENTION)
    if family in SEQ2SEQ or family == "whisper":
        expected |= CROSS
    if family in SPARSE:
        expected |= {"experts.up", "experts.gate", "experts.down"}
    else:
        expected |= GATED_FFN if family in GATED else PLAIN_FFN
    assert anatomy.origin == "table"
    assert set(anatomy.roles()) == expected


@_case
def test_shapes_agree_with_the_live_modules(family: str, changes: dict[str, Any]) -> None:
    model, anatomy = _read(family, changes)
    assert anatomy.linears
    assert len({linear.key for linear in anatomy.linears}) == len(anatomy.linears)
    for linear in anatomy.linears:
        weight = model.get_parameter(f"{linear.module}.weight")
        if linear.transposed:
            weight = weight.T
        assert weight.shape[1] == linear.in_features
        whole = linear.slice.groups * linear.slice.width if linear.slice else linear.out_features
        assert weight.shape[0] == whole
        assert linear.has_bias == (f"{linear.module}.bias" in dict(model.named_parameters()))
    for attention in anatomy.attentions:
        assert attention.heads == HEADS
        roles = {r.role: r for r in anatomy.linears if r.layer == attention.layer and r.stack == attention.stack}
        prefix = "attn" if attention.kind == "self" else "cross_attn"
        assert roles[f"{prefix}.q"].out_features == attention.heads * attention.head_dim
        assert roles[f"{prefix}.o"].in_features == attention.heads * attention.head_dim
    assert {block.width for block in anatomy.blocks} == {HIDDEN}
    assert sum(len(paths) for paths in anatomy.layers.values()) >= 1
    assert all(name in dict(model.named_parameters()) for name in anatomy.biases)


@_case
def test_gradients_arrive_at_every_role(family: str, changes: dict[str, Any]) -> None:
    """A change of any role's output at any position changes the model's output."""
    model, anatomy = _read(family, changes)
    deltas: dict[str, Tensor] = {}

    def add_delta(linear: LinearRole) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            size = (*output.shape[:-1], linear.out_features)
            delta = deltas.setdefault(linear.key, torch.zeros(size, requires_grad=True))
            if delta.shape != torch.Size(size):  # DeBERTa's shared projections run again, on the relative positions
                return output
            return linear.slice.add(output, delta) if linear.slice else output + delta

        return hook

    for linear in anatomy.linears:
        model.get_submodule(linear.module).register_forward_hook(add_delta(linear))
    out = logits(model, family)
    (out * torch.randn_like(out)).sum().backward()
    assert set(deltas) == {linear.key for linear in anatomy.linears}
    flat = [key for key, delta in deltas.items() if delta.grad is None or not delta.grad.abs().sum() > 0]
    assert not flat


def _residual(seen: Any, block: BlockRole) -> Tensor:
    return seen.inputs[block.pre_norm or block.entry]


@_case
def test_a_branch_ends_before_its_residual_sum(family: str, changes: dict[str, Any]) -> None:
    """Residual input + exit output is what the next norm, branch or block sees."""
    model, anatomy = _read(family, changes)
    scale = getattr(model.config, "residual_multiplier", 1.0)
    watched = [path for b in anatomy.blocks for path in (b.entry, b.exit, b.pre_norm, b.post_norm) if path]
    paths = [path for stack in anatomy.layers.values() for path in stack]
    with torch.no_grad(), watching(model, [*watched, *paths]) as seen:
        logits(model, family)
    assert anatomy.blocks
    for stack, layers in anatomy.layers.items():
        for layer, path in enumerate(layers):
            branches = [b for b in anatomy.blocks if b.stack == stack and b.layer == layer]
            assert [b.kind for b in branches] in (["attn", "ffn"], ["attn", "cross_attn", "ffn"])
            _check_block(
                seen, branches, path, scale, post_layernorm="apply_residual_connection_post_layernorm" in changes
            )


def _check_block(seen: Any, branches: list[BlockRole], path: str, scale: float, *, post_layernorm: bool) -> None:
    parallel = len(branches) > 1 and torch.equal(_residual(seen, branches[0]), _residual(seen, branches[-1]))
    if parallel:
        total = _residual(seen, branches[0]) + sum(seen.outputs[b.exit] for b in branches)
        torch.testing.assert_close(total, seen.outputs[path])
        return
    for i, block in enumerate(branches):
        branch = seen.outputs[block.exit] * scale
        if block.post_norm:
            torch.testing.assert_close(seen.inputs[block.entry] + branch, seen.inputs[block.post_norm])
            continue
        residual = seen.outputs[block.pre_norm] if post_layernorm and block.pre_norm else _residual(seen, block)
        after = _residual(seen, branches[i + 1]) if i + 1 < len(branches) else seen.outputs[path]
        torch.testing.assert_close(residual + branch, after)


def _edit(model: nn.Module, linear: LinearRole, factor: float) -> None:
    """Multiply a role's own rows of weight and bias."""
    module = model.get_submodule(linear.module)
    for parameter in (module.weight, module.bias):
        if parameter is None:
            continue
        rows = parameter.data.T if linear.transposed and parameter.dim() == 2 else parameter.data
        if linear.slice is None:
            rows.mul_(factor)
        else:
            split = rows.view(linear.slice.groups, linear.slice.width, -1) if not linear.transposed else None
            if split is None:  # one group only: Conv1D's columns
                rows[linear.slice.start : linear.slice.start + linear.slice.size] *= factor
            else:
                split[:, linear.slice.start : linear.slice.start + linear.slice.size].mul_(factor)


def _edited(family: str, changes: dict[str, Any], role: str, factor: float) -> tuple[nn.Module, Anatomy]:
    model, anatomy = _read(family, changes)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # zero biases would hide one that is not cut, small weights flatten attention
        parameter.data += (0.05 if parameter.dim() == 1 else 0.2) * torch.randn(parameter.shape, generator=generator)
    for linear in anatomy.linears:
        if linear.role == role:
            _edit(model, linear, factor)
    return model, anatomy


@_case
def test_queries_keys_and_values_are_what_they_say(family: str, changes: dict[str, Any]) -> None:
    """Without queries attention is as without keys; without values nothing but the output's bias comes out."""
    prefixes = ["attn", "cross_attn"] if family in SEQ2SEQ or family == "whisper" else ["attn"]
    for prefix in prefixes:
        with torch.no_grad():
            untouched = logits(_edited(family, changes, f"{prefix}.q", 1.0)[0], family)
            no_query = logits(_edited(family, changes, f"{prefix}.q", 0.0)[0], family)
            no_key = logits(_edited(family, changes, f"{prefix}.k", 0.0)[0], family)
            model, anatomy = _edited(family, changes, f"{prefix}.v", 0.0)
            outputs = [linear for linear in anatomy.linears if linear.role == f"{prefix}.o"]
            with watching(model, [linear.module for linear in outputs]) as seen:
                logits(model, family)
        assert outputs
        for linear in outputs:
            assert seen.inputs[linear.module].abs().max() == 0
        if family not in ("deberta-v2", "qwen3", "qwen3_moe", "gemma3_text"):
            torch.testing.assert_close(no_query, no_key)
        if family != "deberta-v2":  # its relative positions have scores of their own
            assert (no_query - untouched).abs().max() > 1e-6


@pytest.mark.parametrize("family", sorted(GATED))
def test_the_gate_is_the_activated_half(family: str) -> None:
    """The inner activation is linear in up and not in gate."""
    inner: dict[str, Tensor] = {}
    for role in ("none", "ffn.up", "ffn.gate"):
        with torch.no_grad():
            model, anatomy = _edited(family, {}, role, -1.0)
            down = next(linear.module for linear in anatomy.linears if linear.role == "ffn.down")
            with watching(model, [down]) as seen:
                logits(model, family)
        inner[role] = seen.inputs[down]
    torch.testing.assert_close(inner["ffn.up"], -inner["none"])
    assert (inner["ffn.gate"] + inner["none"]).abs().max() > 1e-6


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("whisper", "vit")])
def test_the_embedding_is_the_one_that_runs(family: str) -> None:
    model, anatomy = _read(family, {})
    with torch.no_grad(), watching(model, [anatomy.embeddings]) as seen:
        logits(model, family)
    embedding = model.get_submodule(anatomy.embeddings)
    assert seen.outputs[anatomy.embeddings].shape[-1] == embedding.embedding_dim
    assert module_kind(embedding) == "embedding"


HEAD_NAMES = {
    ("bert", "sequence_classification"): ("classifier",),
    ("bert", "masked_lm"): (),
    ("bert", "base"): (),
    ("roberta", "sequence_classification"): ("classifier",),
    ("distilbert", "sequence_classification"): ("pre_classifier", "classifier"),
    ("deberta-v2", "sequence_classification"): ("pooler", "classifier"),
    ("modernbert", "token_classification"): ("head", "classifier"),
    ("gpt2", "causal_lm"): (),
    ("gpt2", "sequence_classification"): ("score",),
    ("llama", "token_classification"): ("score",),
    ("bart", "sequence_classification"): ("classification_head",),
    ("t5", "seq2seq_lm"): (),
    ("t5", "sequence_classification"): ("classification_head",),
    ("vit", "image_classification"): ("classifier",),
    ("whisper", "speech_seq2seq"): (),
}


@pytest.mark.parametrize(("family", "task"), HEAD_NAMES)
def test_the_head_is_what_the_base_lacks(family: str, task: str) -> None:
    _, anatomy = _read(family, {}, task)
    assert anatomy.head == HEAD_NAMES[family, task]
    assert (anatomy.output_embeddings is not None) == task.endswith(("_lm", "seq2seq"))
    inside = tuple(f"{path}." for path in anatomy.head)
    assert not any(name.startswith(inside) for name in (*anatomy.biases, *anatomy.norms) if inside)


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS, *SEQ2SEQ])
def test_the_meta_device_gives_the_same_anatomy(family: str) -> None:
    _, live = _read(family, {})
    with torch.device("meta"):
        _, meta = _read(family, {})
    assert live == meta


def test_shared_layers_count_their_depths() -> None:
    _, one = _read("albert", {})
    assert [attention.depths for attention in one.attentions] == [LAYERS]
    _, many = _read("albert", {"num_hidden_layers": 6, "num_hidden_groups": 2, "inner_group_num": 2})
    assert [attention.depths for attention in many.attentions] == [3, 3, 3, 3]


@pytest.mark.parametrize("family", sorted(SPARSE))
def test_experts_have_roles_and_their_router_is_left_out(family: str) -> None:
    model, anatomy = _read(family, {})
    left_out = dict(anatomy.left_out)
    assert len(left_out) == LAYERS
    assert {role.module for role in anatomy.experts} == {f"model.layers.{n}.mlp.experts" for n in range(LAYERS)}
    assert "router" in left_out["model.layers.0.mlp.gate"]
    assert model.get_parameter("model.layers.0.mlp.experts.gate_up_proj").dim() == 3


def test_what_a_method_added_is_no_part_of_the_anatomy() -> None:
    model, before = _read("bert", {})
    block = model.get_submodule("bert.encoder.layer.0.output.dense")
    block.add_module("peft_site", nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN)))
    model.add_module("peft_prompt", nn.Linear(2, 2))
    assert read_anatomy(model) == before


def test_a_text_model_inside_an_image_model_is_found() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from tests.tiny import tiny_config

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config = Gemma3Config(text_config=tiny_config("gemma3_text").to_dict(), vision_config=vision)
    with torch.device("meta"):
        anatomy = read_anatomy(Gemma3ForConditionalGeneration(config))
    assert anatomy.layers["decoder"] == ("model.language_model.layers.0", "model.language_model.layers.1")
    assert anatomy.embeddings == "model.language_model.embed_tokens"
    assert set(anatomy.roles()) == ATTENTION | GATED_FFN
    assert anatomy.output_embeddings == "lm_head"
