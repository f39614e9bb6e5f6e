"""Code for devices that are not here: each place is taken by a test, or docs/devices.md says that it never ran."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from peftcli.assembly.machine_answers import machine
from peftcli.assembly.precision import decide_precision
from peftcli.distributed.devices import free_bytes, peak_memory, pick_device
from peftcli.errors import UserError
from peftcli.models.load.dtypes import computes_well, dtype_of_4_bit_products
from peftcli.models.load.load_model import _add_placement
from peftcli.models.load.quantization import _check_bitsandbytes
from peftcli.recipe.schema import ModelSpec, TrainingSpec
from peftcli.tasks.task import Batch
from peftcli.training.optim.optimizers import optimizer_problems
from peftcli.training.resuming.compare_inputs import device_name
from peftcli.training.step_batches import worker_threads

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "devices.md"
KINDS = {"cuda", "mps"}
CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))
HERE = "tests/distributed/test_device_branches.py"
ENGINE = "tests/training/test_step_engine.py"

TAKEN = {
    "peftcli/assembly/machine_answers.py: machine": f"{HERE}: test_a_card_is_named",
    "peftcli/assembly/precision.py: _decided": f"{HERE}: test_the_dtype_of_products_on_other_devices",
    "peftcli/assembly/precision.py: _float16": f"{HERE}: test_the_dtype_of_products_on_other_devices",
    "peftcli/assembly/precision.py: _float16_weights": "tests/training/test_machine_answers.py: "
    "test_float16_is_scaled_or_refused",
    "peftcli/assembly/precision.py: decide_precision": f"{ENGINE}: test_tf32_is_said_and_is_for_cuda",
    "peftcli/distributed/devices.py: check_devices": "tests/distributed/test_launching.py: "
    "test_more_processes_than_cuda_devices_are_refused",
    "peftcli/distributed/devices.py: free_bytes": f"{HERE}: test_memory_of_a_card",
    "peftcli/distributed/devices.py: peak_memory": f"{HERE}: test_memory_of_a_card",
    "peftcli/distributed/devices.py: pick_device": f"{HERE}: test_the_device_that_is_chosen",
    "peftcli/models/load/dtypes.py: computes_well": f"{HERE}: test_which_dtypes_a_device_computes_well",
    "peftcli/models/load/load_model.py: _add_placement": f"{HERE}: test_weights_go_straight_to_a_card",
    "peftcli/models/load/quantization.py: _check_bitsandbytes": f"{HERE}: test_a_4_bit_base_by_device",
    "peftcli/models/load/dtypes.py: dtype_of_4_bit_products": f"{HERE}: test_a_4_bit_base_by_device",
    "peftcli/recipe/checks/check_recipe.py: _model": "tests/recipe/test_checks.py: test_wrong_in_meaning",
    "peftcli/recipe/checks/check_recipe.py: _numbers": "tests/recipe/test_checks.py: test_wrong_in_meaning",
    "peftcli/recipe/checks/distributed_checks.py: check_distributed": "tests/recipe/test_checks.py: "
    "test_wrong_in_meaning",
    "peftcli/tasks/task.py: to": f"{HERE}: test_copies_that_do_not_wait_are_for_cuda",
    "peftcli/training/optim/optimizers.py: optimizer_problems": f"{HERE}: test_paged_optimizers_are_for_cuda",
    "peftcli/training/resuming/compare_inputs.py: device_name": f"{HERE}: test_a_card_is_named",
    "peftcli/training/speed/compiled_blocks.py: compile_problems": "tests/training/speed/test_compile.py: "
    "test_a_missing_compiler_is_said_before_anything_loads",
    "peftcli/training/step_batches.py: worker_threads": f"{HERE}: test_batches_are_made_ahead_for_a_card",
}
"""Which test takes a place with what there is here."""


def places(path: Path) -> Iterator[str]:
    """Yield the functions of a file that ask for a kind of device, or call its library."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if any(concerns_a_device(node) for statement in function.body for node in ast.walk(statement)):
            yield function.name


def concerns_a_device(node: ast.AST) -> bool:
    """Tell whether a node compares with `cuda` or `mps`, or reaches into torch's code for them."""
    if isinstance(node, ast.Compare):
        parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        return any(isinstance(part, ast.Constant) and part.value in KINDS for part in parts)
    if isinstance(node, ast.Attribute):
        name = ast.unparse(node)
        return node.attr in {"is_cuda", "is_mps"} or bool(re.fullmatch(r"torch\.(backends\.)?(cuda|mps)", name))
    return False


def found() -> set[str]:
    """Return every place of the package, as `file: function`."""
    files = sorted((ROOT / "peftcli").rglob("*.py"))
    return {f"{path.relative_to(ROOT).as_posix()}: {name}" for path in files for name in places(path)}


def never_run() -> set[str]:
    """Return the places that docs/devices.md lists as never run."""
    section = PAGE.read_text(encoding="utf-8").partition("## Code that never ran")[2].partition("\n## ")[0]
    return {f"{file}: {name}" for file, name in re.findall(r"^\| `(\S+)` \| `(\w+)` \|", section, re.MULTILINE)}


def test_each_place_is_taken_or_listed() -> None:
    missing = found() - set(TAKEN) - never_run()
    rows = "\n".join(
        f"| `{file}` | `{name}` | ... |" for file, _, name in (place.partition(": ") for place in sorted(missing))
    )
    assert not missing, f"name a test in TAKEN, or add to docs/devices.md, Code that never ran:\n{rows}"
    assert never_run() - found() == set(), "no such code any more"
    assert never_run() & set(TAKEN) == set(), "a test takes it: remove it from the page"
    assert set(TAKEN) - found() == set(), "no such code any more"


def test_the_tests_that_take_them_are_there() -> None:
    for test in sorted(set(TAKEN.values())):
        file, _, name = test.partition(": ")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_the_device_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no cuda device"):
        pick_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == CUDA
    assert pick_device("mps") == MPS


def test_memory_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator holds in reserve is free, too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 55)
    assert free_bytes(CUDA) == 140 and peak_memory(CUDA) == 55
    assert free_bytes(MPS) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere getrusage is all there is")
def test_the_memory_of_whoever_started_a_process_is_not_its_own() -> None:
    child = "import torch; from peftcli.distributed.devices import peak_memory; print(peak_memory(torch.device('cpu')))"
    parent = (
        "import subprocess, sys; held = b'1' * 2**30; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent, child], capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < 2**30


def test_a_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "H200")
    assert machine(CUDA)["name"] == "H200" and device_name(CUDA) == "cuda H200"
    assert device_name(MPS) == "mps"


def test_which_dtypes_a_device_computes_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_words: able)
        assert computes_well(torch.bfloat16, CUDA) == able and computes_well(torch.float16, CUDA)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_version, able=able: able)
        assert computes_well(torch.bfloat16, MPS) == able and not computes_well(torch.float16, MPS)


def test_the_dtype_of_products_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_words: False)
    emulated = decide_precision(TrainingSpec(bf16=True), torch.float32, CUDA, width=64)
    assert emulated.compute == torch.bfloat16 and "emulates" in emulated.reason
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_words: True)
    assert decide_precision(TrainingSpec(bf16=True), torch.float32, CUDA, width=64).reason == "training.bf16"
    half = decide_precision(TrainingSpec(fp16=True), torch.float32, CUDA, width=64)
    assert (half.compute, half.weights, half.scaled) == (torch.float16, torch.float32, True)
    assert decide_precision(TrainingSpec(), torch.float32, MPS, width=64).compute == torch.float32
    with pytest.raises(UserError, match="fp16 needs CUDA; the device is mps"):
        decide_precision(TrainingSpec(fp16=True), torch.float32, MPS, width=64)


def test_weights_go_straight_to_a_card() -> None:
    for device, wanted in ((CUDA, {"device_map": {"": CUDA}}), (CPU, {}), (MPS, {})):
        words: dict[str, Any] = {}
        spec = ModelSpec(name_or_path="m")
        assert not _add_placement(words, spec, "causal_lm", PretrainedConfig(), torch.float32, device, None)
        assert words == wanted


def test_a_4_bit_base_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(name_or_path="m", load_in_4bit=True)
    with pytest.raises(UserError, match="bitsandbytes does not compute on mps"):
        _check_bitsandbytes(spec, MPS)
    _check_bitsandbytes(spec, CUDA)
    for able, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_words: able)
        assert dtype_of_4_bit_products(spec, torch.float16, CUDA) == wanted


def test_paged_optimizers_are_for_cuda() -> None:
    assert optimizer_problems(TrainingSpec(optim="paged_adamw_8bit"), "cuda") == []
    assert optimizer_problems(TrainingSpec(optim="paged_adamw_8bit"), "mps")


def test_batches_are_made_ahead_for_a_card() -> None:
    assert [worker_threads(TrainingSpec(), device) for device in (CUDA, CPU, MPS)] == [1, 0, 0]
    assert worker_threads(TrainingSpec(dataloader_num_workers=3), CPU) == 3


class Copied:
    """A tensor as far as copying it goes."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.device, bool]] = []

    def to(self, device: torch.device, non_blocking: bool = False) -> Copied:
        """Note how it is copied."""
        self.calls.append((device, non_blocking))
        return self


@pytest.mark.parametrize(("device", "ahead"), [(CUDA, True), (MPS, False), (CPU, False)], ids=str)
def test_copies_that_do_not_wait_are_for_cuda(device: torch.device, ahead: bool) -> None:
    """A copy to MPS that does not wait reads memory that may be free again (PyTorch issue 139550)."""
    copied = Copied()
    Batch({"input_ids": copied}, {"target": copied}, 1.0, 1, 1, 1).to(device)  # type: ignore[dict-item]
    assert copied.calls == [(device, ahead)] * 2
