"""Experts, rows of tokens and dequantised bases on two processes, with a copy of the base or a share of it, as on one.

One launch of two processes trains all cases in turn, under both strategies.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from peftcli.training.run import train
from tests.distributed.test_sharding import PRECISE, launch, lines_of, result_of
from tests.matrix.runs import Workshop
from tests.models.stored_bases import save_fp8
from tests.recipes import write_jsonl

pytestmark = pytest.mark.timeout(600)
TOKENS = ["<call>", "<done>"]
ROWS = [{"prompt": "<call> good cat", "completion": "<done> red"}, {"prompt": "bad <call>", "completion": "mat <done>"}]
LORA = {"name": "lora", "r": 2, "target_modules": ["attn.q"]}
EXPERTS = ["experts.up", "experts.gate", "experts.down"]
NEW = {"model__new_special_tokens": TOKENS}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("qwen3_moe", {**LORA, "target_modules": [*EXPERTS, "attn.q"]}, {}),
    "dora": ("mixtral", {**LORA, "target_modules": EXPERTS, "use_dora": True}, {}),
    "ia3": ("qwen3_moe", {"name": "ia3", "target_modules": EXPERTS}, {}),
    "saved": ("mixtral", {**LORA, "modules_to_save": ["mlp.gate", "mlp.experts"]}, {}),
    "new": ("llama", LORA, NEW),
    "named": ("gpt2", {**LORA, "trainable_token_indices": ["cat"]}, {}),
    "fp8": ("fp8", {**LORA, "target_modules": "all-linear"}, {}),
}
"""Family, method, and what a recipe has besides."""
STRATEGIES = {"ddp": {}, "fsdp": {"distributed__strategy": "fsdp"}}


def _recipe(workshop: Workshop, case: str, name: str, processes: int, **more: Any) -> Any:
    family, method, changes = CASES[case]
    rows = {
        "training__per_device_train_batch_size": 4 // processes,
        "data__path": str(write_jsonl(workshop.home / "tokens.jsonl", ROWS * 8)),
        "data__val_set_size": 4,
        "training__eval_steps": 2,
    }
    if family == "fp8":
        base = workshop.home / family
        rows["model__name_or_path"] = str(base if base.exists() else save_fp8(base))
    return workshop.recipe(
        name, "llama" if family == "fp8" else family, "lora", **{**PRECISE, **rows, "method": method, **changes, **more}
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("experts"))
    files = [
        _recipe(made, case, f"{case}-{strategy}", 2, **changes).path
        for case in CASES
        for strategy, changes in STRATEGIES.items()
    ]
    launch([str(file) for file in files], 2)
    for case in CASES:
        train(_recipe(made, case, case, 1))
    return made


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(workshop: Workshop, case: str, strategy: str) -> None:
    errors = workshop.home.glob(f"{case}-{strategy}.yaml.error*")
    assert [error.read_text(encoding="utf-8") for error in errors] == []
    one, two = (workshop.home / "runs" / name for name in (case, f"{case}-{strategy}"))
    for left, right in zip(lines_of(one), lines_of(two), strict=True):
        for key in ("loss", "grad_norm", "eval_loss", "tokens"):
            assert (key in left) == (key in right)
            if key in left:
                assert right[key] == pytest.approx(left[key], rel=1e-5), (key, left["step"])
    ours, theirs = result_of(two), result_of(one)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    summary = json.loads((two / "summary.json").read_text(encoding="utf-8"))
    assert summary["processes"] == 2 and summary.get("strategy", "ddp") == strategy


def test_the_cases_train_what_they_name(workshop: Workshop) -> None:
    """A change that no step moved would be equal, too."""
    for case in CASES:
        found = result_of(workshop.home / "runs" / case)
        told = str(CASES[case])
        wanted = "experts" if "experts" in told else "_proj" if "all-linear" in told else "token_adapter"
        mine = {key: tensor for key, tensor in found.items() if wanted in key}
        assert mine and all(tensor.abs().sum() > 0 for key, tensor in mine.items()), case
