"""Fewer of a model's equal blocks: an estimate runs short models, and goes on in a straight line to the whole one.

What a run takes grows by the same amount with each further block that is like the ones before it. A stack is cut to its
first blocks, up to where it begins to repeat itself, and one period; a second model has one period more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from peftcli.models.anatomy import Anatomy

RUN_WHOLE = 12
"""Blocks up to which a model is run as it is: that takes seconds, and nothing is assumed."""
LEAST = 2
"""Blocks of the shortest model: the first one's input needs no gradient, and the last one may be cut."""
LONGEST_PERIOD = 8
"""Blocks after which a stack repeats itself at most (attention over a window in five of six blocks, and the like)."""


@dataclass(frozen=True)
class Repeats:
    """How one stack repeats itself.

    Args:
        short: blocks of the shortest model.
        period: blocks that the next one has more.
        blocks: of the whole stack.
    """

    short: int
    period: int
    blocks: int

    @property
    def more(self) -> float:
        """Periods that the whole stack has beyond the shortest one."""
        return (self.blocks - self.short) / self.period


def repeats(model: nn.Module, anatomy: Anatomy) -> dict[str, Repeats]:
    """Return how each stack of a model can be cut; empty where the model is small or its blocks differ.

    Args:
        model: with its method attached, so that blocks which it treats differently count as different.
    """
    if sum(map(len, anatomy.layers.values())) <= RUN_WHOLE:
        return {}
    found = {}
    for stack, paths in anatomy.layers.items():
        if not _is_list(model, paths):
            return {}
        signs = [_sign(model.get_submodule(path)) for path in paths]
        cut = _repeats(signs)
        if cut is None:
            return {}
        found[stack] = cut
    return found


def shorten(model: nn.Module, anatomy: Anatomy, blocks: Mapping[str, int]) -> None:
    """Leave so many of each stack's blocks, before a method is attached."""
    for stack, count in blocks.items():
        holder, _, name = anatomy.layers[stack][0].rpartition(".")[0].rpartition(".")
        owner = model.get_submodule(holder)
        setattr(owner, name, nn.ModuleList(list(owner.get_submodule(name).children())[:count]))


def _is_list(model: nn.Module, paths: tuple[str, ...]) -> bool:
    """Return whether a stack is all of a list of modules, in its order."""
    holder = paths[0].rpartition(".")[0]
    if not isinstance(model.get_submodule(holder), nn.ModuleList):
        return False
    return [f"{holder}.{number}" for number, _ in enumerate(model.get_submodule(holder).children())] == list(paths)


def _sign(block: nn.Module) -> str:
    """Return what a block's memory depends on: its classes, shapes and dtypes, and what kind of layer it says it is."""
    modules = [
        (name, type(module).__name__, [value for key, value in sorted(vars(module).items()) if key.endswith("_type")])
        for name, module in block.named_modules()
    ]
    tensors = [*block.named_parameters(), *block.named_buffers()]
    sizes = [(name, tuple(each.shape), str(each.dtype), each.requires_grad) for name, each in tensors]
    return f"{modules}{sizes}"


def _repeats(signs: list[str]) -> Repeats | None:
    """Return the shortest cut after which a sequence repeats itself to its end; None without one that saves work."""
    best: Repeats | None = None
    for period in range(1, LONGEST_PERIOD + 1):
        start = next((n for n in range(len(signs) - period) if signs[n:-period] == signs[n + period :]), None)
        if start is None:
            continue
        short = max(LEAST, start + period)
        found = Repeats(short, period, len(signs))
        if short + period < len(signs) and (best is None or short + period < best.short + best.period):
            best = found
    return best
