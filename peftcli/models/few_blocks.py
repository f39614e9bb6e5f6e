"""The first blocks of each stack in the place of all: what holds of every kind of block is tried without the rest.

A trial forward pass of a deep model takes as long as its blocks, of which most are alike. Blocks keep their numbers, so
that what a model's code looks up by number (a list of attention kinds, a cache) is right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from torch import nn

from peftcli.distributed.memory_errors import says_nothing_of_the_model
from peftcli.distributed.whole_tensors import is_share
from peftcli.errors import UserError

_REFUSED = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, UserError)
"""Models refuse in different ways to run with fewer blocks than their config says."""
_PLACE = re.compile(r"(^|_)(i|idx|index|id|num|number|depth)$")
"""Names of attributes that hold a block's own number, which no two blocks share."""

Found = TypeVar("Found")


class FirstBlocks:
    """Tries on the first blocks of a model what holds of all.

    Blocks of one kind have the same modules, shapes, settings and hooks, and train the same. A block in front of which
    nothing is trained is of another kind than one behind it: it keeps nothing for a backward pass.

    Args:
        model: live, parts attached.
        stacks: paths of the blocks of each stack, in order of depth: `Anatomy.layers`. Nothing is left out of a model
            whose values are divided among processes, since FSDP looks at all blocks in its first pass.
    """

    def __init__(self, model: nn.Module, stacks: Mapping[str, Sequence[str]]) -> None:
        divided = any(is_share(each) for each in model.parameters())
        self._lists = {} if divided else _lists(model, stacks)
        self._kinds = {path: _kinds(blocks) for path, blocks in self._lists.items()}

    def find(
        self, trial: Callable[[Mapping[str, int]], Found], *, times: int = 1, settles: Callable[[Found], bool] = bool
    ) -> Found:
        """Return what a trial finds on the first blocks where that settles it, else what it finds on all of them.

        Args:
            trial: looks at the model; called once or twice. It is told for how many blocks each one stands, itself
                included, by path: more than one only for the last of its kind that is there, and nothing where all are
                there.
            times: how many blocks of a kind are kept, or as many as it has.
            settles: whether an answer that was found on each kind of block holds of the whole model.
        """
        with self._shortened(times) as stands_for:
            if stands_for:
                try:
                    found = trial(stands_for)
                except _REFUSED as error:
                    if says_nothing_of_the_model(error):
                        raise
                else:
                    if settles(found):
                        return found
        return trial({})

    @contextmanager
    def _shortened(self, times: int) -> Iterator[dict[str, int]]:
        """Leave out the last blocks of each stack inside; yield for how many blocks each of the others stands."""
        kept = {path: _needed(kinds, times) for path, kinds in self._kinds.items()}
        if all(kept[path] == len(blocks) for path, blocks in self._lists.items()):
            yield {}
            return
        stands_for: dict[str, int] = {}
        for path, kinds in self._kinds.items():
            left_out = Counter(kinds[kept[path] :])
            for number in reversed(range(kept[path])):
                stands_for[f"{path}.{number}"] = 1 + left_out.pop(kinds[number], 0)
        whole = {path: blocks._modules for path, blocks in self._lists.items()}
        try:
            for path, blocks in self._lists.items():
                blocks._modules = dict(islice(whole[path].items(), kept[path]))
            yield stands_for
        finally:
            for path, blocks in self._lists.items():
                blocks._modules = whole[path]


def build_of(block: nn.Module) -> tuple[Any, ...]:
    """Return what blocks that are alike have in common: the classes of their modules, the shapes of their weights."""
    shapes = [(name, tuple(each.shape)) for name, each in block.named_parameters()]
    return (*((name, type(each)) for name, each in block.named_modules()), *shapes)


def _kinds(blocks: nn.ModuleList) -> list[Hashable]:
    """Return the kind of each block: its build, settings and hooks, what it trains, and whether one before it does."""
    kinds: list[Hashable] = []
    learns = False
    for block in blocks:
        modules = [(name, each, vars(each)) for name, each in block.named_modules()]
        settings = [
            (name, key, value)
            for name, _, own in modules
            for key, value in own.items()
            if isinstance(value, bool | int | float | str | None) and not (key[0] == "_" or _PLACE.search(key))
        ]
        hooks = [(len(each._forward_pre_hooks), len(each._forward_hooks)) for _, each, _ in modules]
        trained = [each.requires_grad for each in block.parameters()]
        kinds.append((build_of(block), tuple(settings), tuple(hooks), tuple(trained), learns))
        learns = learns or any(trained)
    return kinds


def _needed(kinds: Sequence[Hashable], times: int) -> int:
    """Return how many of the first blocks hold each kind `times` times, or as often as there is one."""
    seen = Counter[Hashable]()
    needed = 0
    for number, kind in enumerate(kinds, 1):
        seen[kind] += 1
        if seen[kind] <= times:
            needed = number
    return needed


def _lists(model: nn.Module, stacks: Mapping[str, Sequence[str]]) -> dict[str, nn.ModuleList]:
    """Return the lists that hold the blocks of one stack, each once, and nothing else, by path."""
    found = {}
    for paths in stacks.values():
        places = {path.rpartition(".")[0] for path in paths}
        blocks = model.get_submodule(next(iter(places))) if len(places) == 1 else None
        if isinstance(blocks, nn.ModuleList) and len(blocks) == len(set(blocks)) == len(paths):
            found[places.pop()] = blocks
    return found
