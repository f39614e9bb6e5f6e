"""Make the anatomy of a model: from the table of families, from its structure, or from the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from peftcli.errors import UserError
from peftcli.layers.base_linear import linear_widths
from peftcli.models.anatomy import Anatomy, AttentionRole, BlockRole, FusedSlice, LinearRole
from peftcli.models.anatomy_overrides import apply_overrides
from peftcli.models.experts.read_experts import read_experts
from peftcli.models.families.family_row import FamilyRow, FusedRow, StackRow
from peftcli.models.families.family_table import family_row
from peftcli.models.fused_slices import fused_slices
from peftcli.models.module_view import ModuleView, heads_of, hidden_size, module_kind
from peftcli.models.structure.block_lists import TextPart
from peftcli.models.structure.norms_and_biases import (
    NO_GRADIENT,
    biases,
    idle_note,
    lies_idle,
    norms,
    shared_names,
    untouched,
)
from peftcli.models.structure.unknown_family import structural_row
from peftcli.models.trial_forward import other_states

Overrides = Mapping[str, str | list[str]]


def read_anatomy(model: nn.Module, overrides: Overrides | None = None) -> Anatomy:
    """Return the anatomy of a model.

    Args:
        model: a Hugging Face model with or without a task head, on any device, meta included.
        overrides: `model.anatomy` of the recipe: role to a path within a block, or to several.

    Raises:
        UserError: no blocks are recognised, or an override names a module that does not exist.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"a {type(model).__name__} is not a Hugging Face transformers model")
    view = ModuleView(model)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    row = family_row(model.config)
    origin: Literal["table", "structure", "recipe"] = "table"
    notes: list[str] = []
    if row is None or not any(view.expand(stack.layers) for stack in row.stacks):
        origin = "structure"
        row, notes = structural_row(view, config, layers=(overrides or {}).get("layers"))
    if overrides:
        origin = "recipe"
        row = apply_overrides(row, overrides, view)
    reader = _Reader(view, config, row)
    if row.note:
        notes = [*notes, row.note]
    return reader.anatomy(origin, notes)


@dataclass
class _Reader:
    """Makes the anatomy of one model from the row of its family."""

    view: ModuleView
    config: PretrainedConfig
    row: FamilyRow
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    linears: list[LinearRole] = field(default_factory=list)
    blocks: list[BlockRole] = field(default_factory=list)
    attentions: list[AttentionRole] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    routers: list[str] = field(default_factory=list)
    without_attention: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def anatomy(self, origin: Literal["table", "structure", "recipe"], notes: list[str]) -> Anatomy:
        self._read_blocks()
        embeddings = self._embeddings()
        output = _output_embeddings(self.view)
        head = head_modules(self.view)
        text = TextPart(self.view)
        unmoved = untouched(self.view, text, tried=origin != "table")
        notes = [*notes, *self._leave_out_idle(unmoved)]
        experts = read_experts(self.view, self.layers)
        inside = {role.module for role in experts.roles}
        return Anatomy(
            family=self.view.model.config.model_type,
            origin=origin,
            hidden_size=hidden_size(self.config),
            layers=self.layers,
            linears=tuple(linear for linear in self.linears if linear.module not in inside),
            blocks=tuple(self.blocks),
            attentions=tuple(self.attentions),
            norms=norms(self.view, unmoved),
            embeddings=embeddings,
            output_embeddings=output,
            head=head,
            left_out=(*self.left_out, *experts.left_out),
            routers=tuple(self.routers),
            experts=experts.roles,
            prefix_route=self.row.prefix_route,
            prefix_reason=self.row.prefix_reason,
            takes_tokens=self.view.model.main_input_name == "input_ids",
            max_positions=self.row.positions(self.config) if self.row.positions else None,
            max_target_positions=self.row.target_positions,
            biases=biases(self.view, head, unmoved),
            transposed=tuple(name for name, live in self.view.modules.items() if module_kind(live) == "conv1d"),
            shared=shared_names(self.view),
            without_attention=tuple(self.without_attention) if self.attentions else (),
            untouched=unmoved,
            idle=tuple(self.idle),
            other_states=tuple(sorted(other_states(self.view.model))) if origin != "table" else (),
            notes=tuple(notes),
        )

    def _read_blocks(self) -> None:
        """Read every block with the row of its kind; lists of one stack follow each other."""
        first: dict[tuple[str, str], int] = {}
        work: list[tuple[int, int, StackRow, str, int]] = []
        for stack in self.row.stacks:
            paths = self.view.expand(stack.layers) if stack.layers else []
            before = self.layers.get(stack.stack, ())
            start = first.setdefault((stack.stack, stack.layers), len(before))
            if start == len(before):
                self.layers[stack.stack] = (*before, *paths)
            order = list(self.layers).index(stack.stack)
            for number, path in enumerate(paths):
                if stack.numbers is None or number in stack.numbers:
                    work.append((order, start + number, stack, path, len(paths)))
        for _, layer, stack, path, count in sorted(work, key=lambda item: item[:2]):
            self._read_block(stack, path, layer, count)

    def _leave_out_idle(self, unmoved: Mapping[str, str]) -> list[str]:
        """Take out roles, branches, attentions and blocks that text does not reach; return a note where there are any.

        A decoder that attends to images or to an encoder has a branch for that, which text alone does not call.
        """

        def idle(path: str) -> bool:
            return lies_idle(self.view.modules[path], path, unmoved)

        out = [linear.module for linear in self.linears if idle(linear.module)]
        self.left_out += [(path, NO_GRADIENT) for path in dict.fromkeys(out)]
        self.linears = [linear for linear in self.linears if linear.module not in out]
        self.blocks = [block for block in self.blocks if not idle(block.exit)]
        self.attentions = [each for each in self.attentions if not idle(each.module)]
        self.idle = [path for paths in self.layers.values() for path in paths if idle(path)]
        self.without_attention = [path for path in self.without_attention if path not in self.idle]
        return [idle_note(out)] if out else []

    def _own(self, path: str, spec: str) -> str | None:
        """Return the module of a block, if no earlier block has it: Zamba's blocks share one attention."""
        module = self.view.first(path, spec)
        return module if module is not None and self.view.is_first_name(module) else None

    def _read_block(self, stack: StackRow, path: str, layer: int, count: int) -> None:
        found: dict[str, LinearRole] = {}
        for role, specs in stack.linears.items():
            for spec in (specs,) if isinstance(specs, str) else specs:
                module = self._own(path, spec)
                if module is not None:
                    found.setdefault(role, self._linear(stack, role, module, layer))
                    self.linears.append(self._linear(stack, role, module, layer))
        for spec, fused in stack.fused.items():
            module = self._own(path, spec)
            if module is not None:
                for role, piece in self._slices(stack, module, fused).items():
                    found[role] = self._linear(stack, role, module, layer, piece)
                    self.linears.append(found[role])
        self._read_branches(stack, path, layer)
        self._read_attentions(stack, path, layer, count, found)
        for spec, reason in stack.left_out.items():
            module = self._own(path, spec)
            if module is not None:
                self.left_out.append((module, reason))
                if spec in stack.routers:
                    self.routers.append(module)

    def _linear(
        self, stack: StackRow, role: str, module: str, layer: int, piece: FusedSlice | None = None
    ) -> LinearRole:
        live = self.view.modules[module]
        if module_kind(live) not in ("linear", "conv1d"):
            raise UserError(f"{module} has the role {role}, but is a {type(live).__name__}, not a linear module")
        width_in, width_out = linear_widths(live)
        return LinearRole(
            role=role,
            module=module,
            layer=layer,
            stack=stack.stack,
            in_features=width_in,
            out_features=piece.features if piece else width_out,
            has_bias=getattr(live, "bias", None) is not None,
            slice=piece,
            transposed=module_kind(live) == "conv1d",
        )

    def _slices(self, stack: StackRow, module: str, fused: FusedRow) -> dict[str, FusedSlice]:
        _, total = linear_widths(self.view.modules[module])
        heads = self._heads(stack) if fused.sizes is None and len(fused.roles) > 2 else 1
        return fused_slices(fused, total, heads, self.config)

    def _heads(self, stack: StackRow) -> int:
        heads = heads_of(self.config, stack.heads)
        if heads is None:
            raise UserError(
                f"the config of this {self.config.model_type} model does not tell the number of attention heads"
            )
        return heads

    def _read_branches(self, stack: StackRow, path: str, layer: int) -> None:
        for branch in stack.branches:
            entry, end = self.view.first(path, branch.entry), self._own(path, branch.exit)
            if entry is None or end is None:
                continue
            self.blocks.append(
                BlockRole(
                    kind=branch.kind,
                    layer=layer,
                    stack=stack.stack,
                    entry=entry,
                    exit=end,
                    width=self._width(end),
                    post_norm=self._norm(path, branch.post_norm),
                    pre_norm=self._norm(path, branch.pre_norm),
                )
            )

    def _width(self, module: str) -> int:
        """Return the width of a branch: of the projection that it ends with, else of the residual stream."""
        live = self.view.modules[module]
        return linear_widths(live)[1] if module_kind(live) in ("linear", "conv1d") else hidden_size(self.config)

    def _norm(self, path: str, spec: str | None) -> str | None:
        found = self.view.first(path, spec)
        if found is None or isinstance(self.view.modules[found], nn.Identity):
            return None
        return found

    def _read_attentions(
        self, stack: StackRow, path: str, layer: int, count: int, found: Mapping[str, LinearRole]
    ) -> None:
        if not any(self.view.first(path, row.module) for row in stack.attentions):
            self.without_attention.append(path)
        for row in stack.attentions:
            module = self._own(path, row.module)
            prefix = "cross_attn" if row.kind == "cross" else "attn"
            query, key = found.get(f"{prefix}.q"), found.get(f"{prefix}.k")
            if module is None or query is None or key is None:
                continue
            heads, head_dim = self._head_sizes(stack, self.view.modules[module], query, key)
            self.attentions.append(
                AttentionRole(
                    module=module,
                    kind=row.kind,
                    layer=layer,
                    stack=stack.stack,
                    heads=heads,
                    kv_heads=row.kv_heads or key.out_features // head_dim,
                    head_dim=head_dim,
                    depths=stack.depths(self.config, layer, count) if stack.depths else 1,
                )
            )

    def _head_sizes(self, stack: StackRow, attention: nn.Module, query: LinearRole, key: LinearRole) -> tuple[int, int]:
        """Return heads and head size: those that the module tells, where its projections are multiples of the size."""
        own = getattr(attention, "head_dim", None)
        if isinstance(own, int) and own > 0 and not query.out_features % own and not key.out_features % own:
            return query.out_features // own, own
        heads = self._heads(stack)
        return heads, query.out_features // heads

    def _embeddings(self) -> str:
        found = self.view.first(self.view.base_path, self.row.embeddings)
        if found is None:
            raise UserError(
                f"this {self.config.model_type} model has no module {self.row.embeddings!r} for its embeddings",
                suggestion="name it in the recipe: model.anatomy: {embeddings: ...}",
            )
        return found


def _output_embeddings(view: ModuleView) -> str | None:
    """Return the path of the language-model head, or None if there is none."""
    try:
        head = view.model.get_output_embeddings()
    except NotImplementedError:  # raised by some task models
        return None
    return next((name for name, module in view.modules.items() if module is head), None) if head is not None else None


def head_modules(view: ModuleView) -> tuple[str, ...]:
    """Return the modules that the pretrained model does not have: those with weights outside the base, not tied to it.

    In a language model nothing counts as new: the layers in front of its head (BERT's `cls`) are pretrained, too.
    """
    if not view.base_path or _output_embeddings(view) is not None:
        return ()
    base = {id(parameter) for parameter in view.modules[view.base_path].parameters()}
    return tuple(
        name
        for name, module in view.model.named_children()
        if name in view.modules
        and name != view.base_path.split(".")[0]
        and any(id(own) not in base for own in module.parameters())
    )
