"""How soon commands answer: CPU seconds and peak memory of fresh processes.

    python -m benchmarks.startup                  # the table: what was measured, and the limit
    python -m benchmarks.startup --check          # the same, and exit code 1 where a limit is passed
    python -m benchmarks.startup --only count     # the cases whose name contains a word

CPU seconds (user and system) count neighbours on the machine less than the clock does, but a busy machine still adds to
them; each case takes the least of three processes. That is why tests do not measure them: they hold what is loaded and
counted (tests/test_startup.py, tests/matrix/test_counts_at_175_billion.py). The limits were met on one core of 2 GHz.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from peftcli.protocol.registry import registry

ROOT = Path(__file__).resolve().parent.parent
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
GPT3 = {"model_type": "gpt2", "n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048, "vocab_size": 50257}
SPECS = {name: name for name in registry.names()}
SPECS["compose"] = "compose:parts=[{name: prefix_tuning},{name: adapter},{name: adalora}]"
USUAL = "import torch, peft; from transformers import AutoModelForCausalLM, Trainer, TrainingArguments"


@dataclass(frozen=True)
class Case:
    """A command line of Python, and what it may take.

    Args:
        name: of the row in the table.
        arguments: of `python`.
        seconds: CPU seconds allowed; None where the row is only compared with another.
        gigabytes: peak memory allowed.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float | None
    gigabytes: float | None = None


def cases(home: Path) -> Iterator[Case]:
    """Yield what is measured; configs are written below `home`, where `one_step` writes its recipe."""
    peft = ("-m", "peftcli")
    yield Case("peft --help", (*peft, "--help"), 0.3)
    yield Case("peft validate", (*peft, "validate", "configs/lora.yaml"), 0.6)
    for name, config, methods in (("70", LLAMA_70B, {"lora": "lora:r=8"}), ("175", GPT3, SPECS)):
        directory = home / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        count = (*peft, "count-params", "--model", str(directory), "--task", "causal_lm", "--method")
        for method, text in methods.items():
            yield Case(f"count-params {name} billion: {method}", (*count, text), 8.0, 1.5)
    yield Case("import torch, peft, transformers' Trainer", ("-c", USUAL), None)
    yield Case("peft train, one step", (*peft, "train", str(home / "recipe.yaml"), "--overwrite", "--quiet"), None)


def one_step(home: Path) -> Path:
    """Return a recipe: one step of LoRA on a tiny model and rows of token ids."""
    from tests.tiny import save_tiny

    save_tiny(home / "model", "llama", "causal_lm")
    row = json.dumps({"input_ids": [1, 5, 6, 7, 2], "labels": [-100, 5, 6, 7, 2]})
    (home / "rows.jsonl").write_text(f"{row}\n" * 8, encoding="utf-8")
    tree: dict[str, Any] = {
        "model": {"name_or_path": str(home / "model")},
        "task": "causal_lm",
        "data": {"path": str(home / "rows.jsonl"), "format": "pretokenized", "val_set_size": 0},
        "method": {"name": "lora"},
        "training": {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no", "device": "cpu"},
        "output_dir": str(home / "run"),
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return home / "recipe.yaml"


def measure(arguments: tuple[str, ...], repeats: int) -> tuple[float, float]:
    """Return the least CPU seconds of some fresh `python ARGUMENTS`, and the peak memory in GB."""
    seconds, peak = [], 0.0
    for _ in range(repeats):
        child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"python {' '.join(arguments)} ended with {child.returncode}")
        seconds.append(usage.ru_utime + usage.ru_stime)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return min(seconds), peak


def main() -> int:
    """Print the table; return 1 if a limit was asked to hold and does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is passed")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=3, help="processes of a case; the least counts")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    found: dict[str, float] = {}
    passed = []
    print(f"{'':44}{'CPU s':>7}{'limit':>7}{'GB':>7}{'limit':>7}")
    with tempfile.TemporaryDirectory() as home:
        os.environ["PEFTCLI_CACHE"] = f"{home}/cache"
        for case in cases(Path(home)):
            if options.only not in case.name:
                continue
            if case.name == "peft train, one step":  # in a process of its own: a child's peak counts its parent's
                child = get_context("spawn").Process(target=one_step, args=(Path(home),))
                child.start()
                child.join()
            seconds, peak = measure(case.arguments, options.repeats)
            found[case.name] = seconds
            limits = [f"{limit:7.1f}" if limit else f"{'':7}" for limit in (case.seconds, case.gigabytes)]
            print(f"{case.name:44}{seconds:7.2f}{limits[0]}{peak:7.2f}{limits[1]}", flush=True)
            if seconds > (case.seconds or seconds) or peak > (case.gigabytes or peak):
                passed.append(case.name)
    theirs, ours = (found.get(name) for name in ("import torch, peft, transformers' Trainer", "peft train, one step"))
    if theirs is not None and ours is not None and ours > theirs:
        passed.append("a step takes longer than the usual libraries take to be imported")
    for name in passed:
        print(f"above its limit: {name}")
    return 1 if options.check and passed else 0


if __name__ == "__main__":
    sys.exit(main())
