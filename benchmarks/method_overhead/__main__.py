"""What each method costs a training step beyond the frozen base, beside the arithmetic that it needs.

    python -m benchmarks.method_overhead                        # all methods, within six minutes
    python -m benchmarks.method_overhead --methods lora oft --repeats 3
    python -m benchmarks.method_overhead --layers 1 --tokens 64 --repeats 1 --output /tmp/overhead.json   # it runs
    python -m benchmarks.method_overhead --table                # only write RESULTS.md from overhead.json

A step is that of `peft train`, float32, on blocks of the width of SmolLM2-135M. Each method changes the query and value
projections where it changes projections (`LoRA of rank 8` is what all are held against), and has its own places and its
defaults elsewhere. The base is LoRA of rank 1 on the first block's query projection: forward and backward through every
block, and next to nothing else. Methods run one after the other in one process, each between two runs of the base; the
arithmetic is counted from shapes in each run's first step, which is not timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common.record import commit, processor, read_record, show, spread

ROOT = Path(__file__).resolve().parents[2]
BEGIN = "<!-- overhead: written by `python -m benchmarks.method_overhead` from overhead.json -->"
END = "<!-- end of overhead -->"
BASE = {"name": "lora", "r": 1, "target_modules": ["attn.q"], "layers_to_transform": [0]}
LEFT_OUT = ("compose", "qlora")
"""A combination of others, and LoRA on a quantised base, whose products are others."""
SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 8192, "max_position_embeddings": 2048, "tie_word_embeddings": True, "attention_bias": True,
    "mlp_bias": True,
}  # fmt: skip
"""SmolLM2-135M's blocks with biases, which BitFit trains, and a smaller vocabulary: the head is not what differs."""
ROWS = 4
LEARNT = 8
"""One of so many tokens is learnt, as where prompts are longer than answers."""
COLUMNS = (
    "method", "trained", "ms a step", "of the base's", "ms beyond the base", "arithmetic beyond it, GFLOP",
    "ms that this takes at the base's rate", "beside LoRA's ms beyond the base",
)  # fmt: skip


def block(method: str) -> dict[str, Any]:
    """Return a method's block of the recipe: query and value projections, rank 8, where it has such a setting."""
    from peftcli.protocol.registry import registry
    from peftcli.recipe.method_params import TargetedParams

    params = registry.info(method).params
    own: dict[str, Any] = {"name": method}
    if issubclass(params, TargetedParams):
        own["target_modules"] = ["attn.q", "attn.v"]
    if method == "lora":
        own["r"] = 8
    return own


def checkpoint(folder: Path, layers: int) -> Path:
    """Write a random model and a tokenizer of as many made-up words."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model("llama", **SHAPE, num_hidden_layers=layers, pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(config.vocab_size)}, unk_token="w1"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2").save_pretrained(folder)
    return folder


def rows(file: Path, tokens: int, steps: int) -> Path:
    """Write equally long rows of random tokens for so many steps."""
    import random

    draw, length = random.Random(0), tokens // ROWS
    learnt = max(1, length // LEARNT)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(ROWS * steps):
            ids = [draw.randrange(3, SHAPE["vocab_size"]) for _ in range(length)]
            out.write(json.dumps({"input_ids": ids, "labels": [-100] * (length - learnt) + ids[-learnt:]}) + "\n")
    return file


def run(method: dict[str, Any], model: Path, data: Path, scratch: Path, steps: int) -> dict[str, Any]:
    """Train for so many steps beyond the first; return their median, the arithmetic of a step, and what is trained."""
    from benchmarks.method_overhead.counted_products import CountedProducts
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import load_recipe
    from peftcli.record.callback import StepRecord
    from peftcli.training.run import train
    from peftcli.training.watch.reporting import Silent

    work, ends = CountedProducts(), []

    class Clock(Silent):
        """Counts the first step, and notes when each ended."""

        def header(self, facts: dict[str, Any]) -> None:
            work.__enter__()

        def step(self, record: StepRecord) -> None:
            if not ends:
                work.__exit__(None, None, None)
            ends.append(time.perf_counter())

    recipe = scratch / "recipe.yaml"  # JSON is YAML
    whole = {
        "model": {"name_or_path": str(model), "dtype": "float32"}, "task": "causal_lm", "method": method,
        "data": {"path": str(data), "format": "pretokenized", "val_set_size": 0, "cache_dir": str(scratch / "cache")},
        "training": {
            "max_steps": 1 + steps, "per_device_train_batch_size": ROWS, "logging_steps": 1, "save_strategy": "no",
            "learning_rate": 1e-4, "bf16": False, "train_sampling_strategy": "sequential", "device": "cpu",
        },
        "output_dir": str(scratch / "run"),
    }  # fmt: skip
    recipe.write_text(json.dumps(whole), encoding="utf-8")
    summary = train(load_recipe(recipe, [], NAMES), overwrite=True, reporter=Clock())
    times = [1e3 * (after - before) for before, after in pairwise(ends)]
    return {"ms": statistics.median(times), "gflop": work.flops / 1e9, "trained": summary.trainable}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run every method, as often as the time allows, and write the record after each repeat of all."""
    from peftcli.process_state import keep_freed_memory
    from peftcli.protocol.registry import registry

    keep_freed_memory()
    names = given.methods or [name for name in registry.names() if name not in LEFT_OUT]
    names = list(dict.fromkeys(["lora", *names]))
    record: dict[str, Any] = {
        "machine": processor(), "commit": commit(), "date": str(datetime.date.today()), "layers": given.layers,
        "tokens": given.tokens, "steps": given.steps, "methods": {name: {"runs": []} for name in names},
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")),
    }  # fmt: skip
    until, longest = time.monotonic() + 60 * given.minutes, 0.0
    with tempfile.TemporaryDirectory() as home:
        scratch = Path(home)
        model, data = (
            checkpoint(scratch / "model", given.layers),
            rows(scratch / "rows.jsonl", given.tokens, 1 + given.steps),
        )
        for _ in range(given.repeats):
            before = None
            for name in names:
                began = time.monotonic()
                if began + longest > until:
                    return record
                before = before or run(BASE, model, data, scratch, given.steps)
                own = run(block(name), model, data, scratch, given.steps)
                after = run(BASE, model, data, scratch, given.steps)
                base = {**before, "ms": (before["ms"] + after["ms"]) / 2}
                record["methods"][name]["runs"].append({"base": base, **own})
                before, longest = after, max(longest, time.monotonic() - began)
                print(line(name, record), flush=True)
                given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def extra(record: dict[str, Any], name: str) -> list[float]:
    """Return the milliseconds beyond the base of each run of a method."""
    return [one["ms"] - one["base"]["ms"] for one in record["methods"][name]["runs"]]


def line(name: str, record: dict[str, Any]) -> str:
    """Return a method's line of the table: medians over its runs."""
    runs = record["methods"][name]["runs"]
    if not runs:
        return f"| {name} | not measured |" + " |" * (len(COLUMNS) - 2)
    ratios = [one["ms"] / one["base"]["ms"] for one in runs]
    beyond, base = statistics.median(extra(record, name)), runs[0]["base"]
    work = runs[0]["gflop"] - base["gflop"]
    needed = work / base["gflop"] * statistics.median(one["base"]["ms"] for one in runs)
    beside = beyond - statistics.median(extra(record, "lora")) if record["methods"]["lora"]["runs"] else 0.0
    fields = [
        name, f"{runs[0]['trained']:,}", f"{statistics.median(one['ms'] for one in runs):,.0f}",
        f"**{statistics.median(ratios):.2f}**{spread(min(ratios), max(ratios), len(ratios))}", f"{beyond:,.0f}",
        f"{work:,.2f}", f"{needed:,.0f}", f"{beside:+,.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(fields)} |"


def page_part(record: dict[str, Any]) -> str:
    """Return what stands between the marks of RESULTS.md."""
    if not record:
        return "Not measured yet."
    bases = [one["base"] for method in record["methods"].values() for one in method["runs"]]
    heading = (
        f"{record['machine']}; {record['versions']}; commit {record['commit']}, measured {record['date']}: "
        f"{record['layers']} blocks, {record['tokens']:,} tokens a step, {record['steps']} steps a run. The base takes "
        f"{statistics.median(one['ms'] for one in bases):,.0f} ms and {bases[0]['gflop']:,.0f} GFLOP a step."
    )
    table = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([heading, "", *table, *(line(name, record) for name in record["methods"])])


def main() -> int:
    """Measure, and write the table into RESULTS.md where the record is the committed one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method_overhead", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", help="all by default; LoRA runs in any case")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=6.0, help="no run is started that would end later")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/overhead.json")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table of what was measured")
    given = parser.parse_args()
    show(page_part(read_record(given.output) if given.table else measure(given)), given.output, BEGIN, END)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
