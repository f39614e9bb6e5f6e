"""How soon the commands answer: CPU seconds of a fresh process, which other processes on the machine change little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
UNUSED = (
    "bitsandbytes", "datasets", "evaluate", "matplotlib", "mlflow", "pandas", "peft",
    "pyarrow", "sacrebleu", "seqeval", "sklearn", "tensorboard", "torchaudio", "torchvision", "transformers.pipelines",
    "transformers.trainer", "trl", "wandb",
)  # fmt: skip
"""What a run of LoRA on rows of token ids never needs. (accelerate, scipy and torch._dynamo come with transformers.)"""

measures_a_child = pytest.mark.skipif(not hasattr(os, "wait4"), reason="Windows has no wait4")


def cpu_seconds(*arguments: str, repeats: int) -> float:
    """Return the least user + system time of some fresh `python ARGUMENTS`, the one that others disturbed least."""

    def once() -> float:
        child = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        messages = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, messages
        return usage.ru_utime + usage.ru_stime

    return min(once() for _ in range(repeats))


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe: one step of LoRA on a tiny model and rows of token ids."""
    from tests.tiny import save_tiny

    home = tmp_path_factory.mktemp("startup")
    save_tiny(home / "model", "llama", "causal_lm")
    row = json.dumps({"input_ids": [1, 5, 6, 7, 2], "labels": [-100, 5, 6, 7, 2]})
    (home / "rows.jsonl").write_text(f"{row}\n" * 8, encoding="utf-8")
    tree = {
        "model": {"name_or_path": str(home / "model")},
        "task": "causal_lm",
        "data": {"path": str(home / "rows.jsonl"), "format": "pretokenized", "val_set_size": 0},
        "method": {"name": "lora"},
        "training": {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no", "device": "cpu"},
        "output_dir": str(home / "run"),
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return home / "recipe.yaml"


@measures_a_child
@pytest.mark.parametrize(
    ("arguments", "seconds"), [(["--help"], 0.3), (["validate", "configs/lora.yaml"], 0.6)], ids=["help", "validate"]
)
def test_answers_within_its_cpu_time(arguments: list[str], seconds: float) -> None:
    best = cpu_seconds("-m", "peftcli", *arguments, repeats=3)
    assert best <= seconds, f"{best:.2f} s"


@measures_a_child
def test_counts_a_70_billion_parameter_model_within_8_seconds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B), encoding="utf-8")
    command = ["count-params", "--model", str(tmp_path), "--task", "causal_lm", "--method", "lora:r=8"]
    seconds = cpu_seconds("-m", "peftcli", *command, repeats=1)
    assert seconds <= 8, f"{seconds:.2f} s"


PROBE = """
import sys
sys.argv = ["peft", "train", {recipe!r}, "--overwrite", "--quiet"]
from peftcli.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("loaded", [name for name in {unused!r} if name in sys.modules], file=sys.stderr)
"""


def test_training_loads_nothing_that_it_does_not_use(one_step: Path) -> None:
    probe = PROBE.format(recipe=str(one_step), unused=UNUSED)
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "loaded []"


@measures_a_child
@pytest.mark.slow
def test_a_run_of_one_step_ends_before_the_usual_libraries_are_imported(one_step: Path) -> None:
    imports = "import torch, peft; from transformers import AutoModelForCausalLM, Trainer, TrainingArguments"
    theirs = cpu_seconds("-c", imports, repeats=3)
    ours = cpu_seconds("-m", "peftcli", "train", str(one_step), "--overwrite", "--quiet", repeats=3)
    assert ours <= theirs, f"{ours:.2f} s, their imports alone {theirs:.2f} s"
