"""In which dtype a run computes.

The frozen weights keep the dtype that they were loaded with. Training computes in bfloat16 when the recipe says
so, when the weights are bfloat16, or when a probe on this machine found it clearly faster and sound (its first answer
is kept, see `machine_answers`); in float16 on CUDA only, and only with loss scaling. Evaluation, prediction and merge
verification compute in the weights' dtype. Adapters and a trained head stay float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from peftcli.assembly.machine_answers import Answer, keep_answer, kept_answer, machine
from peftcli.distributed.accelerate_engine import MixedPrecision
from peftcli.distributed.processes import World
from peftcli.errors import Problem, UserError
from peftcli.layers.cpu.wide_products import is_emulated, wide_products
from peftcli.models.load.dtypes import computes_well, dtype_named
from peftcli.process_state import matmul_precision
from peftcli.recipe.schema import TrainingSpec

PROBE_MARGIN = 1.25
"""How much faster bfloat16 must be on a block of the model's width: below, rounding is not worth it."""
PROBE_WIDTH = 2048
"""Largest width that is tried: enough to reach full speed."""
NARROW_WIDTH, EMULATED = 128, 0.25
"""Width of the block that is tried before a wider one, and the ratio below which none is: bfloat16 is emulated then.
On a processor with AVX2 alone it was 0.09 times as fast at width 64, 0.06 at 256 and 0.04 at 512."""
PROBE_ERROR = 0.05
"""Largest relative error of bfloat16 in the probe's output and gradient; the format's own rounding gives about 0.01."""

_MIXED: dict[torch.dtype, MixedPrecision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Precision:
    """The dtype of training's products, and why.

    Args:
        compute: dtype in which training computes.
        weights: dtype of the frozen weights, in which evaluation and prediction compute.
        scaled: whether the loss is scaled (float16).
        reason: for the header.
        tf32: whether training multiplies float32 matrices in TensorFloat-32.
        products: how a processor without bfloat16 instructions multiplies; empty where there is nothing to tell.
    """

    compute: torch.dtype
    weights: torch.dtype
    scaled: bool
    reason: str
    tf32: bool = False
    products: str = ""

    @property
    def mixed(self) -> MixedPrecision:
        """Accelerate's name for the dtype of training."""
        return _MIXED.get(self.compute, "no")

    def float32_products(self) -> AbstractContextManager[object]:
        """Return the context of a step's forward and backward passes, in which float32 matrices may use TF32.

        Everything else multiplies them as they are: evaluation, as `peft eval` does, the methods' own computations.
        """
        return matmul_precision("high") if self.tf32 else nullcontext()

    def training(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a pass without gradients that computes as training does."""
        return _context(device, self.compute)

    def inference(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of evaluation and prediction: the weights' dtype."""
        return _context(device, self.weights)

    def __str__(self) -> str:
        names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
        weights, compute = names.get(self.weights, str(self.weights)), names.get(self.compute, str(self.compute))
        if self.tf32 and self.compute == torch.float32:
            compute = "fp32 with products in tf32"
        reason = f"{self.reason}; {self.products}" if self.products else self.reason
        return f"{compute} ({reason})" if weights == compute else f"{compute}, weights {weights} ({reason})"


@contextmanager
def _context(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    if dtype in (torch.float32, torch.float64):
        yield
        return
    # autocast, although the weights may have this dtype already: adapters and head are float32 beside them
    with torch.autocast(device.type, dtype=dtype), wide_products(is_emulated(dtype, device)):
        yield


def decide_precision(
    spec: TrainingSpec,
    weights: torch.dtype,
    device: torch.device,
    *,
    width: int,
    recorded: str | None = None,
    world: World | None = None,
) -> Precision:
    """Return the precision of a run.

    Args:
        weights: dtype of the frozen weights (of what they dequantise to, if they are quantised).
        width: hidden size of the model, the probe's size.
        recorded: `float32`, `bfloat16` or `float16`, what an earlier part of the same run computed in; a probe may
            answer differently on a busy machine, and a resumed run must not.
        world: of several processes the main one decides for all.

    Raises:
        UserError: bf16 and fp16 together, or fp16 without CUDA, where no loss is scaled.
    """
    found = _decided(spec, weights, device, width, recorded, world)
    found = replace(found, tf32=spec.tf32 and device.type == "cuda")
    if not is_emulated(found.compute, device):
        return found
    without = "this processor has no bfloat16 instructions"
    own = spec.fast_paths.wide_products and spec.torch_compile is not True
    products = "products in fp32" if own else "torch emulates them, slowly"
    return replace(found, products=f"{without}, {products}")


def _decided(
    spec: TrainingSpec,
    weights: torch.dtype,
    device: torch.device,
    width: int,
    recorded: str | None,
    world: World | None,
) -> Precision:
    if spec.fp16:
        return _float16(spec, weights, device)
    if spec.bf16 is True:
        slow = device.type == "cuda" and not computes_well(torch.bfloat16, device)
        reason = "training.bf16; this card emulates it, slowly: training.fp16 is faster" if slow else "training.bf16"
        return Precision(torch.bfloat16, weights, False, reason)
    if weights == torch.float16:
        return _float16_weights(device)
    if spec.bf16 is False or weights in (torch.bfloat16, torch.float64):
        reason = "training.bf16 is off" if spec.bf16 is False else "as the weights"
        return Precision(weights, weights, False, reason)
    if recorded is not None:
        return Precision(dtype_named(recorded), weights, False, "as before the stop")
    if device.type == "mps":
        return Precision(weights, weights, False, "as the weights")
    faster, found = _probed(device, width) if world is None else world.from_main(lambda: _probed(device, width))
    return Precision(torch.bfloat16 if faster else weights, weights, False, found)


def _probed(device: torch.device, width: int) -> tuple[bool, str]:
    """Return whether bfloat16 is faster on this machine, and the reason to show; measured once a machine."""
    question = {"asked": "bfloat16", **machine(device), "width": str(min(width, PROBE_WIDTH))}
    answer, when = kept_answer(question), "an earlier probe"
    if answer is None:
        answer, when = keep_answer(question, Answer(*probe_bfloat16(device.type, width))), "a probe"
    return answer.faster, f"{when} found it {answer.ratio:.1f}x as fast here" if answer.faster else "as the weights"


def _float16(spec: TrainingSpec, weights: torch.dtype, device: torch.device) -> Precision:
    problems = []
    if spec.bf16 is True:
        problems.append(Problem("fp16 and bf16 are both on", key="training.fp16", suggestion="keep one of them"))
    if device.type != "cuda":
        remedy = "remove it; training.bf16: auto takes bfloat16 where it is faster"
        problems.append(
            Problem(f"fp16 needs CUDA; the device is {device.type}", key="training.fp16", suggestion=remedy)
        )
    if problems:
        raise UserError(problems)
    return Precision(torch.float16, weights, True, "training.fp16")


def _float16_weights(device: torch.device) -> Precision:
    """Return float16 with loss scaling, for weights that are float16.

    Raises:
        UserError: the device is not CUDA: small gradients would become zero, and nothing would show it.
    """
    if device.type != "cuda":
        problem = (
            f"float16 weights would be trained without loss scaling, which needs CUDA; the device is {device.type}"
        )
        remedy = "use auto, float32 or bfloat16, or set training.bf16: true"
        raise UserError(Problem(problem, key="model.dtype", suggestion=remedy))
    return Precision(torch.float16, torch.float16, True, "as the weights, with loss scaling")


@cache
def probe_bfloat16(device_type: str, width: int) -> tuple[bool, float]:
    """Return whether bfloat16 trains a feed-forward block of this width clearly faster and soundly, and the ratio.

    A narrow block is tried first: where bfloat16 is emulated, one pass of a wide one takes many seconds. The best of
    several short runs counts, so that other load decides nothing.
    """
    device, width = torch.device(device_type), min(width, PROBE_WIDTH)
    if width > NARROW_WIDTH:
        _, ratio = _compared(device, NARROW_WIDTH)
        if ratio < EMULATED:
            return False, ratio
    sound, ratio = _compared(device, width)
    return sound and ratio > PROBE_MARGIN, ratio


def _compared(device: torch.device, width: int) -> tuple[bool, float]:
    """Return whether bfloat16 computes a block of this width soundly, and how many times as fast as float32."""
    state = torch.random.get_rng_state()  # the probe must not move the run's random numbers
    try:
        block = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width), nn.LayerNorm(width))
        block = block.to(device).requires_grad_(False)
        x, direction = torch.randn(512, width).to(device), torch.randn(512, width).to(device)
    finally:
        torch.random.set_rng_state(state)

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with _context(device, dtype):
            y = block(leaf)
        (gradient,) = torch.autograd.grad((y.float() * direction).sum(), leaf)
        return y.detach().float(), gradient

    exact, rough = run(torch.float32), run(torch.bfloat16)
    sound = all(_relative_error(a, b) < PROBE_ERROR for a, b in zip(rough, exact, strict=True))
    slow, fast = _best_times(lambda: run(torch.float32), lambda: run(torch.bfloat16), device)
    return sound, slow / fast


def _relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm().clamp_min(1e-12))


def _best_times(
    first: Callable[[], object], second: Callable[[], object], device: torch.device, repeats: int = 4
) -> tuple[float, float]:
    """Return the shortest time of each; they run in turn, so that other load affects both alike."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for index, function in enumerate((first, second)):
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
