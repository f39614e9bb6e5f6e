"""A device that this machine lacks: its tensors live in main memory, and mixing them with the CPU's is an error.

`start` registers it with torch, once a process and for good, under the name `pretend` (torch's PrivateUse1, a way in
for devices that torch does not know). A tensor on it wraps one on the CPU and computes there, so a run on it has real
values, which can be compared with those of the CPU. What it finds is what a CUDA device would refuse: a tensor that was
left on the CPU beside one on the device. It counts what makes a CUDA device wait: copies to and from main memory, and
values that Python reads. Autocast casts what CUDA's autocast casts.

It does not find operations or dtypes that CUDA lacks, and takes no branch for `cuda`; 4-bit layers, NCCL, compiled code
and attention kernels of CUDA are not pretended. Of a tensor on it, `type(x) is torch.Tensor` is not true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
MAY_BE_SCALARS_OF_THE_CPU = 0
"""Dimensions of a tensor that CUDA takes from the CPU, too: one number, which travels as an argument."""

aten: Any = torch.ops.aten


class StrayTensor(RuntimeError):
    """An operation got a tensor on the CPU beside one on the pretended device."""


class PretendTensor(Tensor):
    """A tensor on the pretended device; `inner` is the one on the CPU that has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        """Wrap a tensor on the CPU."""
        made: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU."""
        return _compute(func, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        """Return the values; torch's own asks for the memory of the tensor."""
        return self.cpu().tolist()

    def storage(self) -> Any:
        """Return the memory that holds the values, by which transformers tells tensors that are one."""
        return self.inner.storage()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory that holds the values."""
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        """Return where the values are."""
        return self.inner.data_ptr()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Show the values."""
        return f"{NAME}({self.inner})"


class _Module(_DummyBackendModule):  # type: ignore[misc]
    """What torch and the libraries above it ask of a device, as `torch.cuda` is for CUDA."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)

    def device(self, device: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def set_device(self, device: Any) -> None: ...

    def synchronize(self, device: Any = None) -> None: ...


_counted: list[Counter[str]] = []


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Yield counts of what happens within: `to device`, `to host`, `read` (a value in Python), `random` (numbers
    drawn on the device), and each operation.
    """
    counts: Counter[str] = Counter()
    _counted.append(counts)
    try:
        yield counts
    finally:
        _counted.remove(counts)


def _count(*what: str) -> None:
    for counts in _counted:
        counts.update(what)


def _each(change: Callable[[Tensor], Any], x: Any) -> Any:
    """Return x with each of its tensors changed; operations take tensors, sequences of them, and plain values."""
    if isinstance(x, Tensor):
        return change(x)
    return type(x)([_each(change, item) for item in x]) if type(x) in (list, tuple) else x


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in (list, tuple):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


def _inside(x: Any) -> Any:
    return x.inner if isinstance(x, PretendTensor) else x


def _outside(x: Tensor) -> Tensor:
    return x if isinstance(x, PretendTensor) else PretendTensor(x)


@cache
def _gives_its_argument(func: Any) -> bool:
    """Tell whether an operation changes an argument, or returns a view of one."""
    return bool(func._schema.is_mutable) or any(returned.alias_info is not None for returned in func._schema.returns)


def _compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation whose tensors are on the pretended device, or which makes one there."""
    if _counted:
        _count(str(func))
    if func is aten._to_copy.default:
        return _to_copy(*args, **kwargs)
    if func in (aten.copy_.default, aten._copy_from.default):
        _count_copy(args[1], isinstance(args[0], PretendTensor))
        _inside(args[0]).copy_(_inside(args[1]))
        return args[0]
    if func is aten._local_scalar_dense.default:
        _count("read")
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    here = _on_device(func, args, kwargs)
    if device is not None:
        here = device.type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu") if here else device}
    if here and torch.Tag.nondeterministic_seeded in func.tags:
        _count("random")
    found = func(*_each(_inside, args), **{key: _each(_inside, value) for key, value in kwargs.items()})
    if not here:
        return found
    found = _each(_outside, found)
    return return_and_correct_aliasing(func, args, kwargs, found) if _gives_its_argument(func) else found


def _on_device(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether a tensor on the device is among the arguments.

    Raises:
        StrayTensor: beside one that was left on the CPU.
    """
    tensors = _tensors((*args, *kwargs.values()))
    here = any(isinstance(x, PretendTensor) for x in tensors)
    stray = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim() > MAY_BE_SCALARS_OF_THE_CPU]
    if here and stray:
        shapes = [tuple(x.shape) for x in stray]
        raise StrayTensor(f"{func} got tensors on the CPU beside those on the device: {shapes}")
    return here


def _to_copy(x: Tensor, **kwargs: Any) -> Tensor:
    device = torch.device(kwargs.pop("device", None) or x.device)
    if device.type == "meta":
        return aten._to_copy.default(_inside(x), device=device, **kwargs)
    kwargs.pop("pin_memory", None)
    _count_copy(x, device.type == NAME)
    copy = aten._to_copy.default(_inside(x), **kwargs)
    return _outside(copy) if device.type == NAME else copy


def _count_copy(source: Tensor, to_device: bool) -> None:
    if isinstance(source, PretendTensor) != to_device:
        _count("to device" if to_device else "to host")


# --- autocast, as for CUDA: https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float16 ------

_LOWER = """
addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc linalg_vecdot linalg_multi_dot linear
matmul mm mv prelu scaled_dot_product_attention
"""
_FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor
pow.Scalar softplus layer_norm native_layer_norm group_norm norm.Scalar norm.ScalarOpt_dim cosine_similarity mse_loss
nll_loss soft_margin_loss smooth_l1_loss l1_loss kl_div cross_entropy_loss binary_cross_entropy_with_logits cdist
rms_norm softmax.int log_softmax.int cumsum cumprod sum prod
"""
_WIDEST = "addcdiv addcmul atan2 bilinear cross dot index_put scatter_add cat stack tensordot"


def _autocast_kernel(operator: Any, choose: Callable[[list[Tensor]], torch.dtype]) -> Callable[..., Any]:
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(*args: Any, **kwargs: Any) -> Any:
        floats = [x for x in _tensors((*args, *kwargs.values())) if x.is_floating_point()]
        floats = [x for x in floats if x.dtype != torch.float64]
        dtype = choose(floats) if floats else None

        def as_chosen(x: Tensor) -> Tensor:
            mine = isinstance(x, PretendTensor) and x.is_floating_point() and x.dtype != torch.float64
            return x.to(dtype) if mine and dtype is not None else x

        with torch._C._ExcludeDispatchKeyGuard(without):
            return operator(*_each(as_chosen, args), **{key: _each(as_chosen, value) for key, value in kwargs.items()})

    return cast


def _widest(floats: list[Tensor]) -> torch.dtype:
    return torch.float32 if any(x.dtype == torch.float32 for x in floats) else floats[0].dtype


def _register_autocast(every: Any, own: Any) -> None:
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    kinds: list[tuple[str, Callable[[list[Tensor]], torch.dtype]]] = [
        (_LOWER, lambda _floats: torch.get_autocast_dtype(NAME)),
        (_FLOAT32, lambda _floats: torch.float32),
        (_WIDEST, _widest),
    ]
    for names, choose in kinds:
        for name in names.split():
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(aten, packet), overload or "default")
            own.impl(name, _autocast_kernel(operator, choose), "AutocastPrivateUse1")


_kept: list[Any] = []  # what is registered with torch lives as long as these objects


def start() -> torch.device:
    """Register the device with torch, and return it. It stays for as long as the process lives."""
    if not _kept:
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # torch.tensor(list, device=...) would copy where nothing is dispatched
        _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module())
        every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        _kept.extend((every, own))
        every.fallback(lambda func, *args, **kwargs: _compute(func, *args, **kwargs), "PrivateUse1")
        _register_autocast(every, own)
    return torch.device(NAME, 0)
