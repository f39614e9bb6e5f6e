"""Find the blocks and projections of a family that is not in the table, by their names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.errors import UserError
from peftcli.layers.base_linear import linear_widths
from peftcli.models.anatomy import Stack
from peftcli.models.families.family_row import AttentionRow, BranchRow, FamilyRow, StackRow
from peftcli.models.later_tokens import attention_is_causal, sees_later_tokens
from peftcli.models.module_view import ModuleView, hidden_size, module_kind

# Usual names of the projections, by role: the last part of a module's path.
_ATTENTION_NAMES = {
    "q": {"q", "q_proj", "query", "q_lin", "query_proj", "wq", "to_q", "q_linear", "linear_q", "q_attn"},
    "k": {"k", "k_proj", "key", "k_lin", "key_proj", "wk", "to_k", "k_linear", "linear_k"},
    "v": {"v", "v_proj", "value", "v_lin", "value_proj", "wv", "to_v", "v_linear", "linear_v"},
    "o": {"o", "o_proj", "out_proj", "out_lin", "wo", "to_out", "dense", "c_proj", "linear_out", "proj", "out"},
}
_FUSED_NAMES = {"c_attn", "qkv", "qkv_proj", "query_key_value", "wqkv", "in_proj", "in_proj_qkv", "att_proj"}
_FUSED_FFN_NAMES = {"gate_up_proj", "wi_fused", "up_gate_proj", "dense_h_to_4h_fused"}
_FFN_NAMES = {
    "ffn.gate": {"gate_proj", "wi_0", "gate", "w1"},
    "ffn.up": {
        "up_proj",
        "fc1",
        "c_fc",
        "lin1",
        "wi",
        "wi_1",
        "w3",
        "dense_h_to_4h",
        "fc_in",
        "linear_1",
        "linear1",
        "dense_in",
    },
    "ffn.down": {"down_proj", "fc2", "c_proj", "lin2", "wo", "w2", "dense_4h_to_h", "fc_out", "linear_2", "linear2"},
}
# Names of the norms after the two branches, before the residual sum.
_NORMS_BEHIND = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
_UNKNOWN_LAYOUT = "a fused projection of unknown layout; target it by its name, or name its roles in model.anatomy"
_ATTENTION_WORD = re.compile(r"(attn|attention|(^|\.)att)", re.IGNORECASE)
_CROSS_WORD = re.compile(r"(cross|encdec|encoder_attn)", re.IGNORECASE)


def structural_row(
    view: ModuleView, config: PretrainedConfig, layers: str | list[str] | None = None
) -> tuple[FamilyRow, list[str]]:
    """Return a row that describes the modules of a live model, and notes that say what was found.

    Args:
        layers: paths of the blocks within the base model, with `*`, from the recipe; None looks for repeated blocks.

    Raises:
        UserError: there are no repeated blocks, or no token embedding.
    """
    if layers is not None:
        specs = [layers] if isinstance(layers, str) else list(layers)
        specs = [spec if "*" in spec else f"{spec}.*" for spec in specs]
        missing = [spec for spec in specs if not view.expand(spec)]
        if missing:
            lists = ", ".join(_block_lists(view)) or "none"
            raise UserError(
                f"model.anatomy.layers: no blocks match {missing[0]!r}", suggestion=f"lists of blocks: {lists}"
            )
    else:
        specs = [f"{path}.*" for path in _block_lists(view)]
    if not specs:
        raise UserError(
            f"{config.model_type} is not a known family, and no list of repeated blocks was found in it",
            suggestion="name the roles in the recipe: model.anatomy: {layers: ..., attn.q: ..., ...}",
        )
    notes = [f"{config.model_type} is not a known family; its parts were found by their names and shapes"]
    stacks = []
    for spec in specs:
        stack, found = _stack(view, config, spec)
        stacks.append(stack)
        notes.append(f"{view.absolute(spec)}: {found}")
    return FamilyRow(stacks=tuple(stacks), embeddings=_embedding_path(view)), notes


def _block_lists(view: ModuleView) -> list[str]:
    """Return the paths in the base model of the outermost lists of blocks: modules of one class that have linears."""
    found: list[str] = []
    for name, module in view.modules.items():
        if not isinstance(module, nn.ModuleList) or not len(module) or not view.in_base(name):
            continue
        if any(name.startswith(f"{view.absolute(other)}.") for other in found):
            continue
        same = all(type(a) is type(b) for a, b in pairwise(module))
        linears = sum(module_kind(child) in ("linear", "conv1d") for child in module[0].modules())
        if same and linears >= 3 and not isinstance(module[0], nn.Linear):
            found.append(name[len(view.base_path) :].lstrip("."))
    return found


def _stack(view: ModuleView, config: PretrainedConfig, spec: str) -> tuple[StackRow, str]:
    blocks = view.expand(spec)
    hidden = hidden_size(config)
    linears: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    for relative, module in _projections(view, blocks):
        width_in, width_out = linear_widths(module)
        role = _role(relative, width_in, width_out, hidden)
        if role is None:
            left_out[relative] = "its name and shape suggest no role; target it by its name"
        elif role == "fused":
            left_out[relative] = _UNKNOWN_LAYOUT
        elif role in linears:
            left_out[relative] = f"{linears[role][0]} is {role} already; target it by name"
        else:
            linears[role] = (relative,)
    _drop_doubtful(view, blocks, linears, left_out)
    which: Stack = "encoder" if _is_encoder(view, blocks, spec, config) else "decoder"
    found = ", ".join(f"{role} = {paths[0]}" for role, paths in linears.items()) or "no projection with a known role"
    row = StackRow(
        stack=which,
        layers=spec,
        linears=linears,
        branches=_branches(view, blocks, linears),
        attentions=tuple(_attentions(linears)),
        heads="num_attention_heads|n_head|num_heads|n_heads|encoder_attention_heads",
        left_out=left_out,
    )
    return row, f"{len(blocks)} blocks, {found}"


def _projections(view: ModuleView, blocks: list[str]) -> Iterable[tuple[str, nn.Module]]:
    """Yield the linears of all blocks with their path in the block, each path once; blocks may differ."""
    seen: set[str] = set()
    for block in blocks:
        for name, module in view.modules.items():
            relative = name[len(block) + 1 :]
            if name.startswith(f"{block}.") and relative not in seen and module_kind(module) in ("linear", "conv1d"):
                seen.add(relative)
                yield relative, module


def _role(relative: str, width_in: int, width_out: int, hidden: int) -> str | None:
    """Return the role that a name suggests and the shape allows, or `fused`, or None."""
    parts = relative.lower().split(".")
    last = parts[-1]
    if last in _FUSED_NAMES or last in _FUSED_FFN_NAMES:
        return "fused"
    in_attention = bool(_ATTENTION_WORD.search(".".join(parts[:-1])))
    if in_attention:
        prefix = "cross_attn" if _CROSS_WORD.search(relative) else "attn"
        for letter, names in _ATTENTION_NAMES.items():
            fits = width_out == hidden if letter == "o" else width_in == hidden or prefix == "cross_attn"
            if last in names and fits:
                return f"{prefix}.{letter}"
        return None
    if last == "dense" and width_in != width_out:  # BERT's intermediate.dense and output.dense
        return "ffn.up" if width_in == hidden else "ffn.down" if width_out == hidden else None
    for role, names in _FFN_NAMES.items():
        fits = width_out == hidden if role == "ffn.down" else width_in == hidden
        if last in names and fits:
            return role
    return None


def _attentions(linears: dict[str, tuple[str, ...]]) -> Iterable[AttentionRow]:
    """Yield the modules that hold the key projections."""
    for prefix in ("attn", "cross_attn"):
        module = linears.get(f"{prefix}.k", ("",))[0].rpartition(".")[0]
        if module:
            yield AttentionRow(module, "self" if prefix == "attn" else "cross")


def _drop_doubtful(
    view: ModuleView, blocks: list[str], linears: dict[str, tuple[str, ...]], left_out: dict[str, str]
) -> None:
    """Remove doubtful roles: an attention without all of q, k and v, and an `up` that is twice too wide."""
    for prefix in ("attn", "cross_attn"):
        if not all(f"{prefix}.{letter}" in linears for letter in "qkv"):
            for letter in "qkv":
                for relative in linears.pop(f"{prefix}.{letter}", ()):
                    left_out[relative] = "attention without all of query, key and value; target it by name"
    if "ffn.up" in linears and "ffn.down" in linears:
        up, down = (_first_live(view, blocks, linears[role][0]) for role in ("ffn.up", "ffn.down"))
        if linear_widths(up)[1] == 2 * linear_widths(down)[0]:
            left_out[linears.pop("ffn.up")[0]] = _UNKNOWN_LAYOUT


def _first_live(view: ModuleView, blocks: list[str], relative: str) -> nn.Module:
    return next(view.modules[f"{block}.{relative}"] for block in blocks if f"{block}.{relative}" in view.modules)


def _branches(view: ModuleView, blocks: list[str], linears: dict[str, tuple[str, ...]]) -> tuple[BranchRow, ...]:
    """Return the branches: each from its first projection to its last, or to the norm after it."""
    pairs = [pair for pair in _NORMS_BEHIND if all(view.first(blocks[0], name) for name in pair)]
    after_attention, after_ffn = pairs[0] if pairs else (None, None)
    rows = []
    kinds: tuple[Literal["attn", "cross_attn"], ...] = ("attn", "cross_attn")
    for kind in kinds:
        if f"{kind}.q" in linears and f"{kind}.o" in linears:
            end = after_attention if kind == "attn" else None
            rows.append(BranchRow(kind, linears[f"{kind}.q"][0], end or linears[f"{kind}.o"][0]))
    first = linears.get("ffn.gate") or linears.get("ffn.up")
    if first and "ffn.down" in linears:
        rows.append(BranchRow("ffn", first[0], after_ffn or linears["ffn.down"][0]))
    return tuple(rows)


def _is_encoder(view: ModuleView, blocks: list[str], spec: str, config: PretrainedConfig) -> bool:
    """Tell whether a stack sees later tokens: by its name beside another stack, else tried, else as its modules say."""
    if view.model.config.is_encoder_decoder:
        return "encoder" in spec and "decoder" not in spec
    owners = [module for name, module in view.modules.items() if blocks[0].startswith(f"{name}." if name else "")]
    owner = next(module for module in reversed(owners) if isinstance(module, PreTrainedModel))
    tried = sees_later_tokens(owner)
    if tried is not None:
        return tried
    causal = attention_is_causal(view.modules[block] for block in blocks[:1])
    return not causal if causal is not None else not getattr(config, "is_decoder", True)


def _embedding_path(view: ModuleView) -> str:
    for path in ("encoder.embed_tokens", "model.encoder.embed_tokens"):  # an encoder-decoder does not call `shared`
        if view.model.config.is_encoder_decoder and view.absolute(path) in view.modules:
            return path
    embedding = view.model.get_input_embeddings()
    for name, module in view.modules.items():
        if module is embedding and view.in_base(name):
            return name[len(view.base_path) :].lstrip(".")
    raise UserError(
        "the model's code does not tell which module embeds its tokens",
        suggestion="name it in the recipe: model.anatomy: {embeddings: ...}",
    )
