"""Find the blocks and projections of a family that is not in the table, by their names and shapes.

Blocks of one list may differ: dense and sparse feed-forwards, attention and state spaces. Each kind has its own row.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.errors import UserError
from peftcli.layers.added_modules import is_added
from peftcli.layers.base_linear import linear_widths
from peftcli.models.anatomy import Stack
from peftcli.models.families.family_row import FamilyRow, StackRow
from peftcli.models.families.fused_layouts import fused_layout
from peftcli.models.later_tokens import attention_is_causal, sees_later_tokens
from peftcli.models.module_view import ModuleView, block_width, hidden_size, module_kind
from peftcli.models.structure.block_branches import BlockBranches
from peftcli.models.structure.block_lists import block_lists
from peftcli.models.structure.block_roles import BlockRoles, block_roles
from peftcli.models.structure.position_tables import positions_of_tables
from peftcli.shown_text import some_of

_HEADS = "num_attention_heads|n_head|num_heads|n_heads|encoder_attention_heads"


def structural_row(
    view: ModuleView, config: PretrainedConfig, layers: str | list[str] | None = None
) -> tuple[FamilyRow, list[str]]:
    """Return a row that describes the modules of a live model, and notes that say what was found.

    A model without a list of blocks has a row without roles: methods that need none work on it.

    Args:
        layers: paths of the blocks within the base model, with `*`, from the recipe; None looks for repeated blocks.

    Raises:
        UserError: the recipe's blocks do not exist, or there is no token embedding.
    """
    specs = [f"{path}.*" for path in block_lists(view)] if layers is None else _named_layers(view, layers)
    notes = [f"{view.model.config.model_type} is not a known family; its parts were found by their names and shapes"]
    stacks: list[StackRow] = []
    for spec in specs:
        rows, found = _stacks(view, config, spec)
        stacks += rows
        notes += found
    if not specs:
        stacks.append(StackRow(stack=_which(view, "", config), layers="", linears={}, branches=(), attentions=()))
        notes.append(
            "no list of blocks was found in it; name the blocks in the recipe for methods that need them: "
            "model.anatomy: {layers: ..., attn.q: ..., ...}"
        )
    reason = None if any(stack.attentions for stack in stacks) else _why_no_prefix(stacks)
    places, of_targets = positions_of_tables(view, config)
    positions = None if places is None else lambda _config: places
    row = FamilyRow(tuple(stacks), _embedding_path(view), positions, prefix_route=None if reason else "interface")
    return replace(row, prefix_reason=reason, target_positions=of_targets), notes


def _named_layers(view: ModuleView, layers: str | list[str]) -> list[str]:
    specs = [layers] if isinstance(layers, str) else list(layers)
    specs = [spec if "*" in spec else f"{spec}.*" for spec in specs]
    missing = [spec for spec in specs if not view.expand(spec)]
    if missing:
        lists = ", ".join(block_lists(view)) or "none"
        raise UserError(f"model.anatomy.layers: no blocks match {missing[0]!r}", suggestion=f"lists of blocks: {lists}")
    return specs


def _why_no_prefix(stacks: list[StackRow]) -> str | None:
    if any("attn.q" in row.linears or any("attn.v" in fused.roles for fused in row.fused.values()) for row in stacks):
        return "its attention takes no keys and values as they are: it compresses them, or keeps a state in their place"
    return None


def _stacks(view: ModuleView, config: PretrainedConfig, spec: str) -> tuple[list[StackRow], list[str]]:
    """Return a row for each kind of block in one list, and what was found."""
    blocks = view.expand(spec)
    hidden, stream = block_width(config), hidden_size(config)
    which = _which(view, spec, config)
    calls_interface = any(_marked(module) for block in blocks for module in view.modules[block].modules())
    kinds: dict[str, StackRow] = {}
    numbers: dict[str, list[int]] = {}
    for number, block in enumerate(blocks):
        sign = _sign(view.modules[block])
        if sign not in kinds:
            roles = block_roles(view, block, spec, hidden, fused_layout(config), stream=stream)
            kinds[sign] = _row(view, block, roles, StackRow(which, spec, {}, (), ()), hidden, marked=calls_interface)
        numbers.setdefault(sign, []).append(number)
    merged: list[tuple[StackRow, list[int]]] = []
    for sign, row in kinds.items():
        same = next((held for other, held in merged if other == row), None)
        if same is None:
            merged.append((row, list(numbers[sign])))
        else:
            same += numbers[sign]
    if len(merged) == 1:
        return [merged[0][0]], [f"{view.absolute(spec)}: {len(blocks)} blocks, {_found(merged[0][0])}"]
    rows = [replace(row, numbers=frozenset(held)) for row, held in merged]
    notes = [f"{view.absolute(spec)}: {_counted(held, len(blocks))}, {_found(row)}" for row, held in merged]
    return rows, notes


def _row(view: ModuleView, block: str, roles: BlockRoles, empty: StackRow, hidden: int, *, marked: bool) -> StackRow:
    """Return the row of one kind of block.

    Args:
        block: path of a block of this kind.
        empty: with the stack and the list.
        marked: whether modules that pass keys and values to an attention function say so in this list.
    """
    attentions = tuple(row for row in roles.attentions if not marked or _marked(view.modules[f"{block}.{row.module}"]))
    return replace(
        empty,
        linears={role: (path,) for role, path in roles.linears.items()},
        fused=roles.fused,
        branches=BlockBranches(view, block, hidden).find(roles.paths()),
        attentions=attentions,
        heads=_HEADS,
        left_out=roles.left_out,
    )


def _marked(module: nn.Module) -> bool:
    """Tell whether a module says that it is attention proper, whose keys and values a function takes."""
    return isinstance(getattr(module, "is_causal", None), bool)


def _sign(block: nn.Module) -> str:
    """Return what tells the kind of a block: the paths, classes and widths of its modules."""
    return ";".join(
        f"{name}:{type(module).__name__}:{linear_widths(module) if module_kind(module) in ('linear', 'conv1d') else ''}"
        for name, module in block.named_modules()
        if name and not is_added(name)
    )


def _found(row: StackRow) -> str:
    whole = {role: paths[0] for role, paths in row.linears.items()}
    pieces = {role: path for path, fused in row.fused.items() for role in fused.roles}
    roles = ", ".join(f"{role} = {path}" for role, path in {**whole, **pieces}.items())
    return roles or "no projection with a known role"


def _counted(numbers: list[int], of: int) -> str:
    """Return `blocks 0, 4, 8 and 12 more (15 of 60)`."""
    return f"block{'s' * (len(numbers) > 1)} {some_of(numbers, 3)} ({len(numbers)} of {of})"


def _which(view: ModuleView, spec: str, config: PretrainedConfig) -> Stack:
    return "encoder" if _is_encoder(view, view.expand(spec) if spec else [], spec, config) else "decoder"


def _is_encoder(view: ModuleView, blocks: list[str], spec: str, config: PretrainedConfig) -> bool:
    """Tell whether a stack sees later tokens: by its name beside another stack, else tried, else as its modules say."""
    if view.model.config.is_encoder_decoder:
        return "encoder" in spec and "decoder" not in spec
    inside = blocks[0] if blocks else view.base_path
    owners = [module for name, module in view.modules.items() if f"{inside}.".startswith(f"{name}." if name else "")]
    owner = next(module for module in reversed(owners) if isinstance(module, PreTrainedModel))
    tried = sees_later_tokens(owner)
    if tried is not None:
        return tried
    causal = attention_is_causal(view.modules[block] for block in blocks[:1])
    return not causal if causal is not None else not getattr(config, "is_decoder", True)


def _embedding_path(view: ModuleView) -> str:
    try:
        embedding = view.model.get_input_embeddings()
    except NotImplementedError:  # CANINE embeds characters by hashes
        embedding = None
    own = [name for name, module in view.modules.items() if module is embedding and view.in_base(name)]
    if embedding is not None and view.model.config.is_encoder_decoder:  # the encoder calls a table of its own
        own = [name for name, module in view.modules.items() if _is_of_encoder(name, module, embedding)] or own
    for name in own:
        return name[len(view.base_path) :].lstrip(".")
    raise UserError(
        "the model's code does not tell which module embeds its tokens",
        suggestion="name it in the recipe: model.anatomy: {embeddings: ...}",
    )


def _is_of_encoder(path: str, module: nn.Module, embedding: nn.Module) -> bool:
    """Tell whether a module is an encoder's name for the table of tokens, or has the same tensor."""
    weight = getattr(embedding, "weight", None)
    same = module is embedding or (isinstance(module, nn.Embedding) and module.weight is weight)
    return same and "encoder" in path.rpartition(".")[0]
