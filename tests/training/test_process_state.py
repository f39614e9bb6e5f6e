"""What belongs to the whole process is set in one module, for good by the command line only; library calls restore it.

RNG states count: a caller's random numbers are the same whether it trains in between or not. The allocator cannot be
read back, so that only the sources can tell who sets it.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftcli.assembly import recipe_to_train
from peftcli.cli.app import main
from peftcli.process_state import large_imports, libraries_quiet

CHURN = """
import resource, sys
from peftcli.process_state import keep_freed_memory
done = keep_freed_memory() if "keep" in sys.argv else None
import torch
def step():
    blocks = [torch.ones(1_000_000) for _ in range(30)] + [torch.ones(15_000_000)]
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def churn(*words: str, **environment: str) -> tuple[str, int]:
    """Return what the setting answered, and the page faults of five equal steps after three."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CHURN, *words], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


@glibc
def test_steps_no_longer_fault_their_memory_in() -> None:
    _, plain = churn()
    answer, kept = churn("keep")
    assert answer == "True"
    assert plain > 10_000 > 10 * kept  # the block of 60 MB alone, five times, in pages of 4 KiB: 73,000


@glibc
def test_thresholds_of_the_environment_are_respected() -> None:
    assert churn("keep", MALLOC_TOP_PAD_="0")[0] == "False"


@pytest.mark.parametrize("on", [True, False])
def test_the_switch(recipe, monkeypatch, on) -> None:
    called = []
    monkeypatch.setattr(recipe_to_train, "keep_freed_memory", lambda: called.append(1))
    loaded = recipe(training__max_steps=1, training__fast_paths={"allocator": on})
    with pytest.raises(SystemExit) as ended:
        main(["train", loaded.path])
    assert ended.value.code == 0
    assert bool(called) == on


ROOT = Path(__file__).resolve().parents[2]
SETTERS = {
    "addFilter", "addHandler", "chdir", "disable_progress_bar", "field_size_limit", "filterwarnings", "mallopt",
    "putenv", "removeFilter", "set_default_dtype", "set_float32_matmul_precision", "set_num_threads",
    "set_start_method", "set_verbosity", "set_verbosity_error", "setLevel", "setrecursionlimit", "simplefilter",
    "signal.signal", "torch.manual_seed", "np.random.seed", "random.seed",
}  # fmt: skip
"""Calls that set something of the process; with a dot, only when they are written like this."""
RESTORED_ON_THE_SPOT = {
    ("tasks/metric_table.py", "simplefilter"),  # in warnings.catch_warnings
    ("analysis/method_contracts.py", "simplefilter"),  # the same
    ("analysis/support/trials.py", "signal.signal"),  # the same; of a timer of CPU time
    ("training/watch/profiling.py", "filterwarnings"),
    ("analysis/estimate/heap_replay.py", "mallopt"),  # a process of its own
    ("deliverables/use_alone.py", "set_verbosity_error"),  # the same
    ("studies/engine/process/train_trial.py", "set_num_threads"),  # the same
    ("studies/engine/process/train_trial.py", "os.environ.update"),  # the same
    ("studies/engine/storage.py", "set_verbosity"),  # of Optuna alone, while it is asked
    ("studies/evidence/class_sums.py", "simplefilter"),  # in warnings.catch_warnings
    ("studies/sweep/optuna_points.py", "simplefilter"),  # the same
}
FOR_GOOD = ("keep_freed_memory", "quiet_profiler")
"""What stays set."""


def setters(path: Path) -> Iterator[str]:
    """Yield the calls of a file that set something of the process, and `os.environ` where it is written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield from {name, name.rpartition(".")[2]} & SETTERS
            if name in ("os.environ.setdefault", "os.environ.update", "os.environ.pop"):
                yield name
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if target is not None and ast.unparse(target).startswith(("os.environ", "torch.backends", "torch._dynamo")):
                yield ast.unparse(target)


def test_one_module_sets_what_belongs_to_the_process() -> None:
    package = ROOT / "peftcli"
    found = {(path.relative_to(package).as_posix(), name) for path in package.rglob("*.py") for name in setters(path)}
    own = {"process_state.py", "stop_signals.py", "record/random_state.py"}
    assert {pair for pair in found if pair[0] not in own} == RESTORED_ON_THE_SPOT
    assert {path for path, _ in found} >= own


def test_what_stays_set_is_set_by_the_command_line() -> None:
    users = {
        path.relative_to(ROOT / "peftcli").as_posix()
        for path in (ROOT / "peftcli").rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in FOR_GOOD)
    }
    own_process = {
        "analysis/estimate/heap_replay.py",
        "analysis/estimate/measured_run.py",
        "training/speed/timed_steps.py",
    }
    assert users - own_process == {"process_state.py", "assembly/recipe_to_train.py", "cli/train.py", "training/run.py"}
    assert "`keep_freed_memory` makes" in (ROOT / "peftcli" / "training" / "run.py").read_text(encoding="utf-8")


def test_library_calls_leave_the_process_as_they_found_it(tmp_path) -> None:
    command = [sys.executable, "-m", "tests.training.process_snapshot", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    control = "\n".join(found.pop("control"))
    for kind in ("environment", "signal SIGTERM", "logger bitsandbytes", "csv", "random numbers of torch", "dynamo",
                 "matmul", "left over"):  # fmt: skip
        assert kind in control
    assert {"evaluate", "fail", "merge", "predict", "train compiled", "train table"} <= set(found)
    assert {act: changed for act, changed in found.items() if changed} == {}


def test_nobody_hears_of_a_cache_that_recomputation_leaves_out(caplog) -> None:
    """transformers says so of every model whose config keeps a cache, of an encoder, too."""
    from transformers.modeling_layers import logger as of_layers
    from transformers.utils.generic import logger as of_calls

    text = "`use_cache=True` is incompatible with gradient checkpointing. Setting `use_cache=False`."
    monitored = (of_layers, of_calls)
    for logger in monitored:
        logger.addHandler(caplog.handler)
    try:
        with libraries_quiet():
            for logger in monitored:
                logger.warning(text)
                logger.warning("another")
        assert {record.getMessage() for record in caplog.records} == {"another"}
        of_calls.warning(text)
        assert text in {record.getMessage() for record in caplog.records}  # as it was found
    finally:
        for logger in monitored:
            logger.removeHandler(caplog.handler)


def test_no_search_for_garbage_at_the_end() -> None:
    cycle = """
import sys
from peftcli.process_state import quick_exit
class Cycle:
    def __del__(self): print("found")
one = Cycle()
one.itself = one
del one
if "quick" in sys.argv: quick_exit()
"""
    plain, quick = (
        subprocess.run([sys.executable, "-c", cycle, *words], capture_output=True, text=True, check=True).stdout
        for words in ((), ("quick",))
    )
    assert (plain, quick) == ("found\n", "")


@glibc
def test_what_libraries_say_at_the_end_is_not_shown() -> None:
    """As triton's 3.9 do of objects that were not freed; a function of the C library stands for theirs."""
    ending = """
import ctypes, sys
from peftcli.process_state import quick_exit
ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).malloc_stats)
if "quick" in sys.argv: quick_exit()
print("the last word", file=sys.stderr)
"""
    plain, quick = (
        subprocess.run([sys.executable, "-c", ending, *words], capture_output=True, text=True, check=True).stderr
        for words in ((), ("quick",))
    )
    assert "Arena 0" in plain and quick == "the last word\n"


@pytest.mark.parametrize("collects", [True, False])
def test_imports_are_put_aside_and_collection_goes_on_as_before(collects: bool) -> None:
    assert gc.isenabled()
    if not collects:
        gc.disable()
    try:
        frozen = gc.get_freeze_count()
        with large_imports():
            assert not gc.isenabled()
        assert gc.get_freeze_count() == frozen and gc.isenabled() is collects  # nothing was imported
        with large_imports():
            sys.modules["peftcli_large"] = ast  # stands for a library
        assert gc.get_freeze_count() > frozen and gc.isenabled() is collects
    finally:
        gc.unfreeze()
        gc.enable()
        sys.modules.pop("peftcli_large", None)
