"""Find the projections of experts: 3-D parameters of transformers' experts interface, or a linear for each expert."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from peftcli.layers.base_linear import linear_widths
from peftcli.models.anatomy import ExpertRole, FusedSlice, Stack
from peftcli.models.module_view import ModuleView, module_kind
from peftcli.models.structure.projection_names import FFN_NAMES

_OWN_LINEARS = re.compile(r"(?P<all>.*\bexperts)\.(?:[a-z]+_)?(?P<number>\d+)\.(?P<rest>.+)")
_INTERFACE = ("is_transposed", "is_concatenated", "has_gate", "has_bias")
OUTSIDE = (
    "the experts' weights are in one parameter of a module whose code takes no function of others (it does not use "
    "transformers' experts interface); they stay frozen"
)


class ExpertReport(NamedTuple):
    """What was found.

    Args:
        roles: the projections, in the model's order.
        left_out: (path, reason) of experts that no method reaches.
    """

    roles: tuple[ExpertRole, ...]
    left_out: tuple[tuple[str, str], ...]


def read_experts(view: ModuleView, layers: Mapping[str, tuple[str, ...]]) -> ExpertReport:
    """Return the experts' projections in the blocks.

    Args:
        view: of the model, on any device.
        layers: paths of the blocks of each stack.
    """
    roles: list[ExpertRole] = []
    left_out: list[tuple[str, str]] = []
    counts = _counts(view)
    blocks: dict[str, tuple[Stack, int]] = {
        path: ("encoder" if stack == "encoder" else "decoder", layer)
        for stack, paths in layers.items()
        for layer, path in enumerate(paths)
    }
    for path, module in view.modules.items():
        place = _block_around(path, blocks)
        if place is None:
            continue
        if is_stacked(module):
            roles += _stacked(path, module, *place)
        elif _holds_experts(module):
            left_out.append((path, OUTSIDE))
        else:
            roles += _own_linear(path, module, *place, counts)
    return ExpertReport(tuple(roles), tuple(left_out))


def is_stacked(module: nn.Module) -> bool:
    """Tell whether a module holds experts as 3-D parameters and runs through transformers' experts interface."""
    weight = getattr(module, "down_proj", None)
    return isinstance(weight, Tensor) and weight.ndim == 3 and all(hasattr(module, name) for name in _INTERFACE)


def _holds_experts(module: nn.Module) -> bool:
    """Tell whether a module outside the interface holds matrices of experts as parameters of its own."""
    if "expert" not in type(module).__name__.lower() or module_kind(module) is not None:
        return False
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _block_around(path: str, blocks: Mapping[str, tuple[Stack, int]]) -> tuple[Stack, int] | None:
    parts = path.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((blocks[each] for each in around if each in blocks), None)


def _stacked(path: str, module: nn.Module, stack: Stack, layer: int) -> Iterator[ExpertRole]:
    live: Any = module
    first = "gate_up_proj" if live.has_gate else "up_proj"
    own = [name for name, _ in module.named_parameters(recurse=False)]  # in the order in which HF peft wraps them
    for name in sorted((first, "down_proj"), key=own.index):
        count, out, width = getattr(live, name).shape
        if live.is_transposed:
            out, width = width, out
        bias = f"{path}.{name}_bias" if live.has_bias else None
        for role, piece in _pieces(name, out, concatenated=live.is_concatenated):
            yield ExpertRole(
                role=role,
                module=path,
                parameter=name,
                layer=layer,
                stack=stack,
                experts=count,
                in_features=width,
                out_features=piece.features if piece else out,
                slice=piece,
                transposed=live.is_transposed,
                bias=bias,
            )


def _pieces(name: str, out: int, *, concatenated: bool) -> Iterator[tuple[str, FusedSlice | None]]:
    """Yield the roles of a parameter, each with its output features; gate and up lie in halves, or in turn."""
    if name != "gate_up_proj":
        yield f"experts.{name.removesuffix('_proj')}", None
        return
    groups, size = (1, out // 2) if concatenated else (out // 2, 1)
    for start, role in enumerate(("experts.gate", "experts.up")):
        yield role, FusedSlice(groups, 2 * size, start * size, size)


def _own_linear(
    path: str, module: nn.Module, stack: Stack, layer: int, counts: Mapping[str, int]
) -> Iterator[ExpertRole]:
    found = _OWN_LINEARS.fullmatch(path)
    if found is None or "shared" in found["all"].rpartition(".")[2] or module_kind(module) not in ("linear", "conv1d"):
        return
    last = found["rest"].rpartition(".")[2]
    role = next((role for role, names in FFN_NAMES.items() if last in names), None)
    if role is None:
        return
    width, out = linear_widths(module)
    yield ExpertRole(
        role=role.replace("ffn", "experts"),
        module=path,
        parameter=None,
        layer=layer,
        stack=stack,
        experts=counts[found["all"]],
        in_features=width,
        out_features=out,
        transposed=module_kind(module) == "conv1d",
        expert=int(found["number"]),
    )


def _counts(view: ModuleView) -> dict[str, int]:
    """Return how many experts each list of modules has, by its path."""
    numbers: dict[str, set[str]] = {}
    for path in view.modules:
        found = _OWN_LINEARS.fullmatch(path)
        if found:
            numbers.setdefault(found["all"], set()).add(found["number"])
    return {path: len(found) for path, found in numbers.items()}
