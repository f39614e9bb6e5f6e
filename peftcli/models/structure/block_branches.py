"""The residual branches of a block, found by the modules that it has: attention or what takes its place, feed-forward.

A branch goes from its first projection to its last, or to the norm behind it. Where it has no such projections of its
own (experts with 3-D weights, state spaces), the whole module is its entry and its exit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Literal

from torch import nn

from peftcli.layers.base_linear import linear_widths
from peftcli.models.families.family_row import BranchRow
from peftcli.models.module_view import ModuleView, module_kind
from peftcli.models.structure.projection_names import ATTENTION_WORD

Roles = Mapping[str, str]
"""Role to the path of its module within the block."""
Side = Literal["attn", "ffn"]

# Usual names of the norms after the two branches, before the residual sum.
_NORMS_BEHIND = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM-4, whose post_attention_layernorm is before the MLP
    ("post_attention_layernorm", "post_mlp_layernorm"),
)
_FFN_WORD = re.compile(r"(mlp|moe|ffn|feed_?forward|(^|_)ff$|mixture|expert)", re.IGNORECASE)
_MIXER_WORD = re.compile(r"(mamba|ssm|conv|recurrent|lru|delta|lstm)", re.IGNORECASE)
_ANY_MIXER = re.compile(r"(mixer|temporal)", re.IGNORECASE)  # a name that some families give to every branch


class BlockBranches:
    """Finds the branches of one block.

    Args:
        view: of the whole model.
        block: full path of the block.
        hidden: width of the residual stream.
    """

    def __init__(self, view: ModuleView, block: str, hidden: int) -> None:
        self._block = view.modules[block]
        self._hidden = hidden
        self._parts = dict(_parts(self._block, hidden))

    def find(self, roles: Roles) -> tuple[BranchRow, ...]:
        """Return the branches, attention first, at most one of each kind.

        Args:
            roles: of the block's projections.
        """
        behind = next((pair for pair in _NORMS_BEHIND if all(self._has(name) for name in pair)), (None, None))
        found = []
        for kind, after in (("attn", behind[0]), ("cross_attn", None), ("ffn", behind[1])):
            span = self._span(kind, roles) or self._whole(kind, roles)
            if span is not None:
                found.append(BranchRow(kind, span[0], after or span[1]))  # type: ignore[arg-type]  # one of the three
        return tuple(found)

    def _has(self, name: str) -> bool:
        return name in dict(self._block.named_children())

    def _span(self, kind: str, roles: Roles) -> tuple[str, str] | None:
        """Return the first and the last projection of a branch; its whole module where experts work beside them."""
        end = roles.get("ffn.down" if kind == "ffn" else f"{kind}.o")
        if end is None:
            return None
        owner = next((path for path in self._parts if end == path or end.startswith(f"{path}.")), None)
        if owner is not None and has_experts(self._block.get_submodule(owner)):
            return _ends(owner, self._block.get_submodule(owner))
        names = ("ffn.gate", "ffn.up") if kind == "ffn" else (f"{kind}.q",)
        start = next((roles[name] for name in names if name in roles and self._sees_stream(roles[name])), None)
        if start is None and kind != "cross_attn":
            start = self._first_projection(end.rpartition(".")[0])
        return (start, end) if start is not None else None

    def _sees_stream(self, path: str) -> bool:
        return linear_widths(self._block.get_submodule(path))[0] == self._hidden

    def _first_projection(self, parent: str) -> str | None:
        """Return the first linear in a module that the residual stream enters."""
        for name, module in self._block.get_submodule(parent).named_modules():
            path = f"{parent}.{name}" if parent else name
            if name and module_kind(module) in ("linear", "conv1d") and self._sees_stream(path):
                return path
        return None

    def _whole(self, kind: str, roles: Roles) -> tuple[str, str] | None:
        """Return the module that is a whole branch, twice: the largest of its kind, if no projection has a role."""
        taken = [path for role, path in roles.items() if not role.startswith(kind)]
        parts = [
            (path, module)
            for path, module in self._parts.items()
            if _kind(path, module, self._block) == kind and not any(other.startswith(f"{path}.") for other in taken)
        ]
        if not parts:
            return None
        best = max(parts, key=lambda part: sum(parameter.numel() for parameter in part[1].parameters()))[0]
        return _ends(best, self._parts[best])


def _ends(path: str, module: nn.Module) -> tuple[str, str]:
    """Return entry and exit of a whole module; of a sequence, which would run what is added to it, its ends."""
    if isinstance(module, nn.Sequential):
        names = [name for name, _ in module.named_children()]
        return f"{path}.{names[0]}", f"{path}.{names[-1]}"
    return path, path


def has_experts(module: nn.Module) -> bool:
    """Tell whether a module has experts: weights of three dimensions that are not those of a convolution, or a list."""
    for name, child in module.named_modules():
        if _has_tensors(child):
            return True
        if name.rpartition(".")[2] == "experts" and isinstance(child, nn.ModuleList | nn.ModuleDict):
            return True
    return False


def _parts(module: nn.Module, hidden: int, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules within a block that may be a branch, with their path in it.

    A module that has a norm of the residual stream, and no linears or experts of its own, is a block within the block.
    """
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList) or _is_inner_block(child, hidden):
            yield from _parts(child, hidden, here)
        elif module_kind(child) is None and _computes(child) and _fits(child, hidden):
            yield here, child


def _is_inner_block(module: nn.Module, hidden: int) -> bool:
    children = list(module.children())
    norm = any("norm" in type(child).__name__.lower() and _widths(child) == {hidden} for child in children)
    own = any(module_kind(child) or _has_tensors(child) for child in children) or any(
        True for _ in module.parameters(recurse=False)
    )
    return norm and not own


def _has_tensors(module: nn.Module) -> bool:
    """Tell whether a module has weights of three dimensions that are not those of a convolution."""
    convolution = "conv" in type(module).__name__.lower()
    return not convolution and any(parameter.ndim >= 3 for parameter in module.parameters(recurse=False))


def _widths(norm: nn.Module) -> set[int]:
    return {parameter.shape[-1] for parameter in norm.parameters(recurse=False)}


def _computes(module: nn.Module) -> bool:
    """Tell whether a module is more than a norm or one projection: it has two matrices or more."""
    return sum(parameter.ndim >= 2 for parameter in module.parameters()) >= 2


def _fits(module: nn.Module, hidden: int) -> bool:
    """Tell whether the residual stream can enter a module: one of its linears takes it, or it has none."""
    linears = [child for child in module.modules() if module_kind(child) in ("linear", "conv1d")]
    return not linears or any(linear_widths(linear)[0] == hidden for linear in linears)


def _kind(path: str, module: nn.Module, block: nn.Module) -> Side | None:
    """Return which branch a module is, by its name, its class, and whether it has experts."""
    name, own = path.rpartition(".")[2], type(module).__name__
    pairs = zip(own, type(block).__name__, strict=False)
    family = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))  # letters, as in GraniteMoeHybrid
    for word in (path if name.isdigit() else name, own[family:]):
        if ATTENTION_WORD.search(word):
            return "attn"
        if _FFN_WORD.search(word):
            return "ffn"
        if _MIXER_WORD.search(word):
            return "attn"
    if _ANY_MIXER.search(path):
        return "attn"
    return "ffn" if has_experts(module) else None
