"""Run a model's code on tensors without values, and count the bytes that live at each moment.

A tensor that stems from a weight or from numbers with a fraction is a `FakeTensor` of torch: shape, dtype and device,
no memory. What is made of whole numbers alone (tokens, masks, positions) is computed as it is while it is small, so
that the code takes the branches that it takes in training. Where the code asks for a value that there is not, it gets
one: true, or 1. The idea of counting in a dispatch mode is that of torch's `MemTracker`
(torch.distributed._tools.mem_tracker).
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from peftcli.analysis.estimate.product_memory import HALVES, ProductMemory
from peftcli.layers.cpu.equal_slices import passes_that_show_memory

SMALL = 2**22
"""Elements up to which whole numbers are computed."""

NOT_HELD = ""
"""The part of what stands for something and takes no memory."""

aten: Any = torch.ops.aten
_DEVICE_OF: Any = torch.ops.prim.device.default


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class
    """A context in which every operation's memory is counted.

    Attributes:
        live: bytes that live now, by part.
        peak: bytes at the fullest moment since the start, or since `restart`.
        at_peak: the bytes by part then.
        vocabulary: last dimension of what counts as logits; 0 for nothing.
        events: (number of the block, its size) in order; the size is negative where it is given back.
        products: what the libraries of products have kept.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing here is compiled, and torch's guard against that takes its time in every operation."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live: Counter[str] = Counter()
        self.peak, self.at_peak = 0, Counter[str]()
        self._part, self._known = "activations", dict[int, tuple[weakref.ref[Any], int, str, int]]()
        self.total = self._number = self.vocabulary = 0
        self.events: list[tuple[int, int]] = []
        self.products = ProductMemory()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be in the context; loops over equal slices are cut short."""
        with self.fake, self, passes_that_show_memory():
            yield

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is made inside as this part's."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def restart(self) -> None:
        """Look for a new fullest moment from now on; what only a circle of objects holds is let go of before."""
        gc.collect(1)
        self.peak, self.at_peak = self.total, Counter(self.live)

    def begin_events(self, without: Container[str]) -> None:
        """Forget what happened, but for the blocks that live now and do not belong to one of these parts."""
        known = sorted((number, size, part) for _, number, part, size in self._known.values())
        self.events = [(number, size) for number, size, part in known if part not in without]

    def claim(self, tensors: Iterable[Tensor | None], part: str) -> None:
        """Count tensors that live already as those of another part."""
        for tensor in tensors:
            key = 0 if tensor is None else id(tensor.untyped_storage())
            if key in self._known:
                storage, number, old, size = self._known[key]
                self._add(old, -size)
                self._add(part, size)
                self._known[key] = (storage, number, part, size)

    def _add(self, part: str, size: int) -> None:
        self.live[part] += size
        self.total += 0 if part == NOT_HELD else size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, and count what it makes."""
        if func is _DEVICE_OF and isinstance(args[0], FakeTensor):  # more than half of all
            return args[0].fake_device
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = any(isinstance(tensor, FakeTensor) for tensor in given)
        if fakes and func in _ASKED:
            return _ASKED[func](given[0])
        if fakes and not all(isinstance(tensor, FakeTensor) for tensor in given) and not _changes_values(func, given):
            args, kwargs = tree_map_only(Tensor, self._without_values, (args, kwargs))
        made = self._made_of_shapes(func, args, kwargs) if fakes else self._made_of_values(func, given, args, kwargs)
        for leaf in [made] if isinstance(made, Tensor) else tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        if func in _PRODUCTS:
            self._note_product(func, given)
        return made

    def _note_product(self, func: Any, factors: list[Tensor]) -> None:
        """Note what a product on a CPU takes beside tensors: what stays, and in 16 bits a factor that is packed."""
        for size in self.products.kept(func, factors):
            self._number += 1
            self.events.append((self._number, size))
        right = factors[-1]
        if right.device.type == "cpu" and right.dtype in HALVES:
            self._number += 1
            size = right.numel() * right.element_size()
            self.events += [(self._number, size), (self._number, -size)]

    def _without_values(self, tensor: Tensor) -> FakeTensor:
        """Return a tensor of the same shape that can stand beside others without values.

        What torch itself makes of one that has values takes ten times as long, and the operation's shape is not kept.
        """
        return tensor if isinstance(tensor, FakeTensor) else self._like(tensor)

    def _like(self, tensor: Tensor) -> FakeTensor:
        """Return a new tensor of the same shape, without values."""
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        with unset_fake_temporarily():
            shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(self.fake, shape, device)

    def _made_of_shapes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask torch what an operation makes of these shapes, or remember what it said: that is most of an estimate.

        Remembered are operations that make one tensor, are a view of their first one, or write into it and return it.
        """
        key = _sign((func, args, kwargs))
        known = _MADE.get(key) if key is not None else None
        if known is None:
            made = func(*args, **kwargs)
            if key is not None and (found := _made(func, args, made, key)) is not None:
                _MADE[key] = found
            return made
        if known.returns_first:
            return args[0]
        with unset_fake_temporarily():
            shape = torch.empty_strided(known.shape, known.stride, dtype=known.dtype, device="meta")
            if func.is_view:
                shape.set_(args[0].untyped_storage(), known.offset, known.shape, known.stride)
        return FakeTensor(self.fake, shape, known.device)

    def _made_of_values(self, func: Any, given: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute what only stems from values, if it is small; what is made anew with a fraction has none."""
        large = any(tensor.numel() > SMALL for tensor in given)
        if func.is_view:
            with unset_fake_temporarily():
                view = func(*args, **kwargs)
            if not isinstance(view, Tensor) or view.numel() <= SMALL:
                return view
        known = func in _WITHOUT_SIZE or func._schema.is_mutable or (given and _is_small_by_elements(func, given))
        if not large and not known:
            try:
                shape = func(*args, **kwargs)
            except (DynamicOutputShapeException, DataDependentOutputException):
                pass  # what it makes depends on the values, which are there
            else:
                leaves = [leaf for leaf in tree_leaves(shape) if isinstance(leaf, Tensor)]
                fraction = not given and any(leaf.is_floating_point() for leaf in leaves)
                if fraction or any(leaf.numel() > SMALL for leaf in leaves):
                    # torch 2.15 keeps weak references to what is made anew, and those cannot be swapped (`give_memory`)
                    return tree_map_only(FakeTensor, self._like, shape)
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._known.get(key)
        if known is not None and known[0]() is storage:
            return
        size, part = storage.nbytes(), self._part
        if part == "activations" and self.vocabulary and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary:
            part = "logits"
        self._number += 1
        self._known[key] = (weakref.ref(storage, lambda _gone: self._gone(key)), self._number, part, size)
        self.events.append((self._number, size))
        self._add(part, size)
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, Counter(self.live)

    def _gone(self, key: int) -> None:
        _storage, number, part, size = self._known.pop(key)
        self.events.append((number, -size))
        self._add(part, -size)


@dataclass(frozen=True)
class _Made:
    """What an operation makes of tensors of certain shapes: a tensor of this one, or the first of the given ones."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    returns_first: bool


_MADE: dict[Any, _Made] = {}


def _sign(value: Any) -> Any:
    """Return what decides what an operation makes of an argument, to be looked up; None where that is not known."""
    if isinstance(value, FakeTensor):
        if value.layout is not torch.strided or value.dtype.is_complex:
            return None
        return value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device
    if isinstance(value, tuple | list):
        signs = tuple(map(_sign, value))
        return None if None in signs else (type(value), signs)
    if isinstance(value, dict):
        return _sign(tuple(value.items()))
    return (type(value), value) if value is None or isinstance(value, _PLAIN) else None


def _made(func: Any, args: tuple[Any, ...], made: Any, key: Any) -> _Made | None:
    """Return what can be remembered of an operation; None of one whose result shares memory in another way."""
    if not isinstance(made, FakeTensor) or made.layout is not torch.strided or made.dtype.is_complex:
        return None
    first = args[0] if args and isinstance(args[0], FakeTensor) else None
    offset = int(made.storage_offset())
    found = _Made(tuple(made.shape), made.stride(), offset, made.dtype, made.fake_device, made is first)
    if found.returns_first or func._schema.is_mutable:  # not if it was given another shape
        return found if found.returns_first and key == _sign((func, args, {})) else None
    storage = made.untyped_storage()._cdata
    of_args = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    shares = [leaf for leaf in of_args if leaf.untyped_storage()._cdata == storage]
    if func.is_view:
        return found if first is not None and any(leaf is first for leaf in shares) else None
    return None if shares or found.offset else found


def _changes_values(func: Any, given: list[Tensor]) -> bool:
    """Return whether an operation writes into a tensor that has values."""
    return bool(func._schema.is_mutable) and not isinstance(given[0], FakeTensor)


def _is_small_by_elements(func: Any, given: list[Tensor]) -> bool:
    """Return whether an operation goes element by element, and makes few of them."""
    return torch.Tag.pointwise in func.tags and prod(np.broadcast_shapes(*(each.shape for each in given))) <= SMALL


def _one(tensor: Tensor) -> Any:
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


_ASKED: dict[Any, Callable[[Tensor], Any]] = {
    aten._local_scalar_dense.default: _one,
    aten.equal.default: lambda _tensor: True,
    aten.allclose.default: lambda _tensor: True,
    aten.is_nonzero.default: lambda _tensor: True,
}
"""Operations that give a value, and what is given where there is none."""

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, torch._ops.OpOverload)
"""Types of arguments that are compared by value."""

_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}

_WITHOUT_SIZE = {*_ASKED, aten.nonzero.default}
"""Operations whose result, or its size, depends on values."""
