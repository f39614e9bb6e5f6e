"""A trace of torch's profiler (Chrome's JSON) in one page: where a step's time went, and what held its memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

ROWS = 12
STEP, BACKWARD, OPTIMIZER = "ProfilerStep#", "autograd::engine::evaluate_function: ", "Optimizer."
"""How the profiler names a step, a node of the backward pass, and the optimizer's `step` and `zero_grad`."""
ALLOCATES = ("aten::empty", "aten::resize_", "aten::new_empty")
"""Operations that only make memory for the one that called them."""
PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::addmm_": 1, "aten::baddbmm": 1}
"""Matrix products, and at which of the arguments the first factor is."""
NAME_WIDTH, NUMBER_WIDTH = 52, 12


@dataclass
class Operation:
    """One call.

    Args:
        own: microseconds outside the operations that it called; on CUDA, of the kernels that it started.
        phase: of the step.
        identity: what the kernels that it started name it by; None where the trace has none.
        shapes: of the arguments, [] for one that is no tensor.
    """

    name: str
    start: float
    end: float
    own: float
    phase: str
    parent: Operation | None
    identity: int | None = None
    shapes: list[list[int]] = field(default_factory=list)

    @property
    def work(self) -> float:
        """The floating-point operations of a matrix product; 0 for what is none, or has no shapes."""
        first = PRODUCTS.get(self.name)
        if first is None or len(self.shapes) < first + 2:
            return 0.0
        return 2.0 * prod(self.shapes[first]) * self.shapes[first + 1][-1]

    @property
    def maker(self) -> str:
        """The operation that memory made here is for."""
        operation: Operation = self
        while operation.parent is not None and operation.name.startswith(ALLOCATES):
            operation = operation.parent
        return operation.name.removeprefix(BACKWARD)


def describe(trace: Mapping[str, Any], *, cuda: bool) -> str:
    """Return the page: phases, operations, and blocks of memory at the peak; at most 100 columns.

    Args:
        trace: the parsed file, of whole steps.
        cuda: whether kernels' times and the GPU's memory count, instead of the CPU's.
    """
    events = trace["traceEvents"]
    steps = steps_of(events)
    count = max(len(steps), 1)
    wall = sum(event["dur"] for event in steps)
    threads = operations_of(events)
    operations = [operation for thread in threads.values() for operation in thread]
    if cuda:
        _take_kernel_times(events, operations)
    phases: dict[str, float] = defaultdict(float)
    times: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    work: dict[str, float] = defaultdict(float)
    for operation in operations:
        phases[operation.phase] += operation.own
        name = operation.name.removeprefix(BACKWARD)
        times[name] += operation.own
        calls[name] += 1
        work[name] += operation.work
    between = "GPU without work" if cuda else "between operations (Python, batches)"
    phases[between] = max(wall - sum(phases.values()), 0)
    rows = [_row(name, time / count / 1e3, time / wall) for name, time in _largest(phases)]
    top = [_row(n, t / count / 1e3, t / wall, calls[n] / count, _rate(work[n], t)) for n, t in _largest(times)[:ROWS]]
    return "\n".join([
        _row("where time went", "ms a step", "share"),
        *rows,
        "",
        _row("operations", "ms a step", "share", "calls", "GFLOP/s"),
        *top,
        "",
        *_memory(events, threads, device=1 if cuda else 0),
    ])  # fmt: skip


def _rate(work: float, time: float) -> str:
    """Return GFLOP/s, from operations and microseconds; nothing where no work is known."""
    return f"{work / time / 1e3:,.0f}" if work and time else ""


def _largest(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: -item[1])


def steps_of(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the recorded steps; each has its microseconds as `dur`."""
    return [event for event in events if _is_step(event) and event["cat"] == "user_annotation"]


def _is_step(event: Mapping[str, Any]) -> bool:
    return event.get("ph") == "X" and str(event["name"]).startswith(STEP)


def operations_of(events: Iterable[Mapping[str, Any]]) -> dict[Any, list[Operation]]:
    """Return each thread's calls in order of their start, with who called whom."""
    threads: dict[Any, list[Any]] = {}
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "user_annotation") and not _is_step(event):
            threads.setdefault(event["tid"], []).append(event)
    found: dict[Any, list[Operation]] = {}
    for thread, called in threads.items():
        open_calls: list[Operation] = []
        found[thread] = []
        for event in sorted(called, key=lambda event: (event["ts"], -event["dur"])):
            while open_calls and open_calls[-1].end <= event["ts"]:
                open_calls.pop()
            parent = open_calls[-1] if open_calls else None
            phase = parent.phase if parent is not None else _phase(event["name"])
            end = event["ts"] + event["dur"]
            given = event.get("args", {})
            identity, shapes = given.get("External id"), given.get("Input Dims", [])
            operation = Operation(event["name"], event["ts"], end, event["dur"], phase, parent, identity, shapes)
            if parent is not None:
                parent.own -= event["dur"]
            found[thread].append(operation)
            open_calls.append(operation)
    return found


def _phase(name: str) -> str:
    if name.startswith(OPTIMIZER):
        return "optimizer"
    return "backward" if name.startswith(BACKWARD) else "forward, loss, norm of the gradients"


def _take_kernel_times(events: Iterable[Mapping[str, Any]], operations: list[Operation]) -> None:
    """Replace the time of a call by that of the kernels that it started."""
    started_by = {operation.identity: operation for operation in operations if operation.identity is not None}
    for operation in operations:
        operation.own = 0.0
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            starter = started_by.get(event.get("args", {}).get("External id"))
            if starter is not None:
                starter.own += event["dur"]


def _memory(events: Iterable[Mapping[str, Any]], threads: Mapping[Any, list[Operation]], *, device: int) -> list[str]:
    """Return what held memory when the steps held most, beyond what was there before them."""
    changes = sorted(
        (e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == device),
        key=lambda event: event["args"]["Ev Idx"],
    )
    level = highest = peak = 0
    for index, event in enumerate(changes):
        level += event["args"]["Bytes"]
        if level > highest:
            highest, peak = level, index
    live: dict[int, Mapping[str, Any]] = {}
    for event in changes[: peak + 1]:
        if event["args"]["Bytes"] > 0:
            live[event["args"]["Addr"]] = event
        else:
            live.pop(event["args"]["Addr"], None)
    makers = _makers(live.values(), threads)
    held: Counter[str] = Counter()
    blocks: Counter[str] = Counter()
    for address, event in live.items():
        held[makers[address]] += event["args"]["Bytes"]
        blocks[makers[address]] += 1
    lines = [_row(name, size / 1e6, size / max(highest, 1), blocks[name]) for name, size in held.most_common(ROWS)]
    return [_row(f"memory of a step at its peak: {highest / 1e6:,.1f} MB", "MB", "share", "blocks"), *lines]


def _makers(allocations: Iterable[Mapping[str, Any]], threads: Mapping[Any, list[Operation]]) -> dict[int, str]:
    """Return by address what made each block: the innermost call around it."""
    found: dict[int, str] = {}
    by_thread: dict[Any, list[Mapping[str, Any]]] = {}
    for event in allocations:
        by_thread.setdefault(event["tid"], []).append(event)
    for thread, made in by_thread.items():
        calls, position, open_calls = threads.get(thread, []), 0, list[Operation]()
        for event in sorted(made, key=lambda event: event["ts"]):
            while position < len(calls) and calls[position].start <= event["ts"]:
                open_calls.append(calls[position])
                position += 1
            open_calls = [call for call in open_calls if call.end >= event["ts"]]
            found[event["args"]["Addr"]] = open_calls[-1].maker if open_calls else "outside of operations"
    return found


def _row(name: str, first: float | str, share: float | str, count: float | str = "", rate: str = "") -> str:
    """Return a line of 52 + 4 x 12 columns; a long name loses its end."""
    short = name if len(name) < NAME_WIDTH else f"{name[: NAME_WIDTH - 4]}..."
    number = first if isinstance(first, str) else f"{first:,.2f}"
    part = share if isinstance(share, str) else f"{share:.1%}"
    times = count if isinstance(count, str) else f"{count:,.0f}"
    columns = "".join(f"{text:>{NUMBER_WIDTH}}" for text in (number, part, times, rate))
    return f"{short:<{NAME_WIDTH}}{columns}".rstrip()
