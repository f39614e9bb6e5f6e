"""Train, evaluate, predict and merge in this process, and print what of the process changed by each of them.

`test_process_state` runs it as `python -m tests.training.process_snapshot DIRECTORY`, since pytest sets handlers and
filters of its own. What libraries set when they are imported is not ours: they are imported first.
"""

from __future__ import annotations

import csv
import functools
import gc
import hashlib
import json
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from torch import nn

from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe
from peftcli.record.callback import StepRecord
from peftcli.training.run import train
from peftcli.training.watch.reporting import Silent
from tests.recipes import chat_rows, class_rows, write_jsonl
from tests.tiny import save_tiny

IMPORTED_FIRST = (
    "accelerate", "bitsandbytes", "huggingface_hub", "psutil", "sklearn.metrics", "torch._dynamo", "torch._inductor",
    "transformers.generation", "transformers.modeling_utils",
)  # fmt: skip


def snapshot() -> dict[str, Any]:
    """Return what a caller of the library can notice of its process, by name."""
    return {
        **{f"environment {name}": value for name, value in os.environ.items()},
        **{f"signal {number.name}": str(_handler(number)) for number in signal.valid_signals() if _named(number)},
        **{f"logger {name}": _logger(logging.getLogger(name)) for name in ["", *logging.root.manager.loggerDict]},
        **{f"dynamo {name}": str(value) for name, value in torch._dynamo.config.get_config_copy().items()},
        "warnings filters": [str(entry) for entry in warnings.filters],
        "csv limit": csv.field_size_limit(),
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name != "tqdm_monitor"),
        "directory": os.getcwd(),
        "locale": locale.getlocale(),
        "streams": [id(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "hooks": [id(hook) for hook in (sys.excepthook, sys.displayhook, threading.excepthook)],
        "interpreter": [gc.isenabled(), sys.getrecursionlimit(), sys.getswitchinterval(), sys.path],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "transformers": _transformers(),
        "accelerate": str(import_module("accelerate.state").PartialState._shared_state),
        **_torch(),
        **{f"random numbers of {name}": _digest(state) for name, state in _random_states().items()},
    }


def _named(number: Any) -> bool:
    return isinstance(number, signal.Signals)


def _handler(number: signal.Signals) -> Any:
    return signal.getsignal(number)


def _logger(logger: logging.Logger) -> list[Any]:
    handlers, filters = list(map(str, logger.handlers)), list(map(str, logger.filters))
    return [logger.level, logger.disabled, logger.propagate, handlers, filters]


def _transformers() -> list[Any]:
    from huggingface_hub.utils import are_progress_bars_disabled

    messages = transformers.utils.logging
    return [messages.get_verbosity(), messages.is_progress_bar_enabled(), are_progress_bars_disabled()]


def _torch() -> dict[str, Any]:
    return {
        "torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "matmul precision": [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32],
        "cudnn": [torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "gradients": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
        "autocast": [torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()],
        "function modes": len(torch.overrides._get_current_function_mode_stack()),
        "process group": torch.distributed.is_available() and torch.distributed.is_initialized(),
    }


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state().tolist(),
    }


def _digest(state: Any) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


def changes(act: Callable[[], object]) -> list[str]:
    """Return what changed by a call; what is new counts only where it is set to something."""
    before = snapshot()
    act()
    after = snapshot()
    plain = _logger(logging.Logger("new"))
    new = {name for name in after if name not in before and not (name.startswith("logger ") and after[name] == plain)}
    gone = {name for name in before if name not in after}
    different = {name for name in before if name in after and before[name] != after[name]}
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in sorted(new | gone | different)]


class Fails(Silent):
    """Stands for a bug, or a user's own reporter that raises, in the middle of a run."""

    def step(self, record: StepRecord) -> None:
        if record.step == 2:
            raise RuntimeError("power cut")


def recipes(home: Path) -> dict[str, LoadedRecipe]:
    """Write models, rows and recipes that touch as much of the process as they can."""
    table = ["text,label", *(f"{row['text']},{row['label']}" for row in class_rows(20))]
    table.append(f"{'cat ' * 50_000},class0")  # a cell beyond the csv module's own limit
    (home / "rows.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    chat = write_jsonl(home / "chat.jsonl", chat_rows(20))
    compiled = {"torch_compile": True, "eval_generate": 1, "max_new_tokens": 2, "dataloader_num_workers": 3}
    made = {
        "compiled": _recipe(home, "compiled", "llama", "causal_lm", chat, {"name": "lora"}, **compiled),
        "table": _recipe(home, "table", "bert", "sequence_classification", home / "rows.csv", {"name": "adapter"}),
        "prefix": _recipe(home, "prefix", "llama", "causal_lm", chat, {"name": "prefix_tuning"}, bf16=True),
    }
    if find_spec("bitsandbytes") is not None:
        made["4 bits"] = _recipe(home, "4 bits", "llama", "causal_lm", chat, {"name": "qlora"})
    return made


def _recipe(
    home: Path, name: str, family: str, task: str, rows: Path, method: dict[str, Any], **training: Any
) -> LoadedRecipe:
    model = home / family
    if not model.exists():
        save_tiny(model, family, "base" if "classification" in task else task)
    tree = {
        "model": {"name_or_path": str(model)},
        "task": task,
        "data": {"path": str(rows), "val_set_size": 0.2, "max_length": 32, "cache_dir": str(home / "cache")},
        "method": method,
        "training": {"learning_rate": 0.01, "max_steps": 3, "per_device_train_batch_size": 4, "device": "cpu",
                     "bf16": False, **training},
        "output_dir": str(home / "runs" / name),
    }  # fmt: skip
    file = home / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_recipe(file, [], NAMES)


@contextmanager
def traced_only() -> Iterator[None]:
    """Compile without generating code, which takes a minute of C++."""
    compile_module = nn.Module.compile
    nn.Module.compile = functools.partialmethod(compile_module, backend="aot_eager")  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.compile = compile_module  # type: ignore[method-assign]


def control() -> None:
    """Change one of each kind, to show that it is seen."""
    os.environ["PEFTCLI_CONTROL"] = "1"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    csv.field_size_limit(1000)
    torch.rand(1)
    torch._dynamo.config.recompile_limit = 99
    torch.set_float32_matmul_precision("medium")
    threading.Thread(target=threading.Event().wait, daemon=True, name="left over").start()


def fails(loaded: LoadedRecipe) -> None:
    """Train into an error in the middle of a run, and into one before it starts."""
    with suppress(RuntimeError):
        train(loaded, reporter=Fails(), overwrite=True)
    with suppress(UserError):
        train(loaded, resume=True, overwrite=True)


def main(home: Path) -> None:
    """Print, as one JSON object, the changes of every act."""
    for name in IMPORTED_FIRST:
        if find_spec(name.split(".")[0]) is not None:
            import_module(name)
    torch.compile(torch.neg, backend="aot_eager")(torch.ones(2))  # the first one sets up the compiler's log
    made = recipes(home)
    run = made["compiled"].recipe.output_dir
    found: dict[str, list[str]] = {}
    with traced_only():
        for name, loaded in made.items():
            found[f"train {name}"] = changes(functools.partial(train, loaded))
    found["train again"] = changes(lambda: train(made["compiled"]))
    found["evaluate"] = changes(lambda: evaluate_run(str(run)))
    found["predict"] = changes(lambda: list(predict_run(str(run), str(home / "chat.jsonl"))))
    found["merge"] = changes(lambda: merge_run(Path(str(run)), home / "merged"))
    found["fail"] = changes(lambda: fails(made["prefix"]))
    found["control"] = changes(control)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
