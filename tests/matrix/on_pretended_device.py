"""Whole runs on a device that this machine does not have: `python -m tests.matrix.on_pretended_device PART OUTPUT`.

In a process of its own, since the device stays registered with torch. Each case trains through the loop, with
evaluations, generated text and checkpoints; what it raises is written down as text, an empty one where all went well.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.matrix import pretended_device

DEVICE = pretended_device.start()  # before the package is imported, which looks for devices nowhere at import time

from accelerate import PartialState  # noqa: E402

from peftcli.distributed import devices  # noqa: E402
from peftcli.inference import evaluate_run as evaluation  # noqa: E402
from peftcli.inference.predict_run import predict_run  # noqa: E402
from peftcli.layers.parts import lowrank  # noqa: E402
from peftcli.layers.parts.lora import Factor  # noqa: E402
from peftcli.merging.merge_run import merge_run  # noqa: E402
from peftcli.protocol.registry import registry  # noqa: E402
from peftcli.recipe.optimizer_table import OPTIMIZERS  # noqa: E402
from peftcli.training import run as run_module  # noqa: E402
from tests.matrix.runs import TASKS, Workshop  # noqa: E402

EVALUATED = {"data__val_set_size": 0.2, "training__eval_generate": 1}
FAMILIES = ("llama", "bert", "t5")
NO_BIASES = ("llama", "t5")
"""BitFit is refused there; it has a family of its own below."""
SHORT = {"training__max_steps": 2, "training__max_new_tokens": 2}
"""Two steps: the second one has an optimizer's state."""
PLANTED = "a tensor left on the CPU"
"""The one case that must fail."""
NOT_HERE = {"qlora": "bitsandbytes computes on devices that it knows"}
"""Methods that no pretended device can train, and why."""


@dataclass(frozen=True)
class Case:
    """One recipe: a tiny model, a method, and changes.

    Args:
        then: uses the run that it left.
        draws_here: whether random numbers may be drawn on the device; a seed would not mean the same everywhere.
        planted: whether a tensor is left on the CPU.
    """

    family: str
    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    then: Callable[[Path, Workshop, Case], None] | None = None
    draws_here: bool = True
    planted: bool = False


def methods() -> Iterator[tuple[str, Case]]:
    """Yield every method on a decoder, an encoder and an encoder-decoder."""
    for method in registry.names():
        for family in FAMILIES:
            if method in NOT_HERE or (method == "bitfit" and family in NO_BIASES):
                continue
            changes = EVALUATED if TASKS.get(family) != "sequence_classification" else {"data__val_set_size": 0.2}
            steps = {"training__max_steps": 3} if method == "adalora" else {}  # a rank is pruned between two others
            yield f"{method} {family}", Case(family, method, changes | steps, draws_here=False)
    yield "bitfit gpt2", Case("gpt2", "bitfit", EVALUATED, draws_here=False)


def settings() -> Iterator[tuple[str, Case]]:
    """Yield what changes a step, each with a method that it matters for."""
    checkpointed = {"training__gradient_checkpointing": True}
    packed = {"data__packing": True, "training__per_device_train_batch_size": 2}
    bfloat16 = {"training__bf16": True}
    for family in ("llama", "bert", "t5"):
        yield f"checkpointing {family}", Case(family, "lora", checkpointed)
        yield f"bf16 {family}", Case(family, "lora", bfloat16 | {"data__val_set_size": 0.2})
    for family in ("qwen2", "opt"):  # documents told apart by positions, and by 4-D masks
        yield f"packing {family}", Case(family, "lora", packed)
    for method in ("adalora", "prefix_tuning", "compacter", "unipelt"):
        changes = {**checkpointed, **packed, **bfloat16, "training__max_steps": 3}
        yield f"all at once, {method}", Case("gpt2", method, changes)
    yield "NEFTune", Case("llama", "lora", {"training__neftune_noise_alpha": 5.0})
    yield "workers", Case("llama", "lora", {"training__dataloader_num_workers": 2})
    yield "accumulated", Case("llama", "lora", {"training__gradient_accumulation_steps": 2})
    yield "smoothed", Case("llama", "lora", {"training__label_smoothing_factor": 0.1})
    yield "balanced classes", Case("bert", "lora", {"training__class_weights": "balanced"})
    yield "DoRA", Case("llama", "lora", {"method__use_dora": True})
    yield "PiSSA", Case("llama", "lora", {"method__init_lora_weights": "pissa"})
    yield "dropout", Case("llama", "lora", {"method__lora_dropout": 0.1})
    yield "modules_to_save", Case("llama", "lora", {"method__modules_to_save": ["lm_head"]})
    yield "prompt from words", Case("llama", "prompt_tuning", {"method__prompt_tuning_init": "sample_vocab"})
    yield "prefix through an MLP", Case("llama", "prefix_tuning", {"method__prefix_projection": True})
    for name, optimizer in OPTIMIZERS.items():
        if optimizer.package != "bitsandbytes":
            yield f"optimizer {name}", Case("llama", "lora", {"training__optim": name})


def uses() -> Iterator[tuple[str, Case]]:
    """Yield runs that are used afterwards: resumed, evaluated, predicted with, merged."""
    saved = {"training__save_strategy": "steps", "training__save_steps": 1, **EVALUATED}
    yield "resumed", Case("llama", "lora", saved, resumed)
    for family in ("llama", "bert", "t5"):
        yield f"used {family}", Case(family, "lora", {"data__val_set_size": 0.2}, used)
    yield "used prefix", Case("llama", "prefix_tuning", {"data__val_set_size": 0.2}, used)
    yield "used full", Case("bert", "full", {"data__val_set_size": 0.2}, used)
    for method in ("adalora", "lora"):  # its orthogonality term is computed in another way; and its large chunks
        yield f"as on the CPU, {method}", Case("llama", method, {"training__max_steps": 3}, as_on_the_cpu)
    yield PLANTED, Case("llama", "lora", planted=True)


def resumed(run: Path, workshop: Workshop, case: Case) -> None:
    """Go on from the first step's checkpoint, as if the process had been killed in the second."""
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "step-000002")
    (run / "summary.json").unlink()
    run_module.train(workshop.recipe(run.name, case.family, case.method, **(SHORT | case.changes)), resume=True)


def as_on_the_cpu(run: Path, workshop: Workshop, case: Case) -> None:
    """Train the same on the CPU, and compare the losses."""
    there = run_module.pick_device
    run_module.pick_device = lambda _name: torch.device("cpu")
    try:
        run_module.train(workshop.recipe(f"{run.name}-cpu", case.family, case.method, **(SHORT | case.changes)))
    finally:
        run_module.pick_device = there
    found, wanted = (losses(path) for path in (run, run.with_name(f"{run.name}-cpu")))
    assert len(found) == 3 and all(abs(a - b) < 1e-4 for a, b in zip(found, wanted, strict=True)), (found, wanted)


def losses(run: Path) -> list[float]:
    """Return the loss of each step that a run wrote."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def used(run: Path, workshop: Workshop, case: Case) -> None:
    """Evaluate, predict and merge, with verification."""
    evaluation.evaluate_run(run)
    assert list(predict_run(run, str(workshop.rows(case.family))))
    if case.method == "lora":
        merge_run(run, run.parent / f"{run.name}-merged", use_alone=False)


PARTS = {"methods": methods, "settings": settings, "uses": uses}


def trained(workshop: Workshop, name: str, case: Case) -> str:
    """Return what went wrong, or nothing."""
    run = name.replace(" ", "-").replace(",", "")
    try:
        with _left_on_the_cpu() if case.planted else nullcontext(), pretended_device.counting() as counts:
            run_module.train(workshop.recipe(run, case.family, case.method, **(SHORT | case.changes)))
        if counts["random"] and not case.draws_here:
            return f"drawn on the device: {counts['random']} times"
        if case.then is not None:
            case.then(workshop.home / "runs" / run, workshop, case)
    except Exception as error:
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if "peftcli" in frame.filename]
        return f"{type(error).__name__}: {error}; {[f'{place.filename}:{place.lineno}' for place in places[-3:]]}"
    return ""


@contextmanager
def _left_on_the_cpu() -> Iterator[None]:
    """Make LoRA's matrices on the CPU, wherever the model is."""
    inner = Factor.__init__

    def on_the_cpu(self: Factor, rows: int, columns: int, device: Any) -> None:
        inner(self, rows, columns, "meta" if str(device) == "meta" else "cpu")

    Factor.__init__ = on_the_cpu  # type: ignore[method-assign]
    try:
        yield
    finally:
        Factor.__init__ = inner  # type: ignore[method-assign]


def main(part: str, output: str) -> None:
    """Run the cases of a part, and write what each raised."""
    for module in (devices, run_module, evaluation):  # which device there is; everything below is as in any run
        module.pick_device = lambda _name: DEVICE  # type: ignore[attr-defined]
    PartialState.default_device = property(lambda _state: DEVICE)  # Accelerate looks for devices that it knows
    lowrank.FAST_DEVICES.add(DEVICE.type)  # the function that CUDA takes
    with TemporaryDirectory() as home:
        workshop = Workshop(Path(home))
        found = {name: trained(workshop, name, case) for name, case in PARTS[part]()}
    Path(output).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
