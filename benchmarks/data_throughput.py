"""How fast rows are tokenised and packed, against a bare fast tokenizer's batched call on the same cores.

    python benchmarks/data_throughput.py                      # 200,000 rows of GSM8K, plain and with a chat template
    python benchmarks/data_throughput.py --rows 20000 --repeats 3

The target is half of the bare call's tokens a second, in bounded memory. Both sides run in turns in processes of their
own, so that neither finds the other's caches warm; the tokenizer is trained on the rows (12,000 tokens, byte level).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "gsm8k_train_2000.jsonl"
TARGET = 0.5


def main() -> None:
    """Measure, print a line for each repeat, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--source", type=Path, default=SHARED)
    parser.add_argument("--side", choices=["bare", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--template", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(bare(options) if options.side == "bare" else ours(options)))
        return
    with tempfile.TemporaryDirectory() as work:
        material(Path(work), options.source, options.rows)
        for template in ("none", "chatml"):
            compare(Path(work), template, options)


def compare(work: Path, template: str, options: argparse.Namespace) -> None:
    """Run both sides in turns and print what they reached."""
    ratios = []
    for _ in range(options.repeats):
        one, two = (run(side, work, template) for side in ("bare", "ours"))
        ratios.append(two["tokens_per_second"] / one["tokens_per_second"])
        for name, side in (("bare", one), ("ours", two)):
            speed, memory = side["tokens_per_second"], side["peak_mb"]
            print(
                f"{template:7} {name}: {speed:12,.0f} tokens/s, peak memory {memory:6,.0f} MB, {side['seconds']:.1f} s"
            )
    print(f"{template:7} ratio {statistics.median(ratios):.2f} (target {TARGET})")


def run(side: str, work: Path, template: str) -> dict[str, float]:
    """Return what one side measured in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--work", str(work), "--template", template]
    environment = {**os.environ, "PEFTCLI_CACHE": tempfile.mkdtemp(dir=work)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def material(work: Path, source: Path, count: int) -> None:
    """Write the rows, repeated to `count`, and a tokenizer trained on them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    lines = source.read_text(encoding="utf-8").splitlines()
    with open(work / "rows.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(lines[number % len(lines)] + "\n")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=12_000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(work / "tokenizer")


def bare(options: argparse.Namespace) -> dict[str, float]:
    """Tokenise the finished texts in batches of a thousand, and keep nothing."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.work / "tokenizer")
    with open(options.work / "rows.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if options.template == "none":
        texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    else:
        start, end = "<|im_start|>", "<|im_end|>"
        texts = [f"{start}user\n{row['question']}{end}\n{start}assistant\n{row['answer']}{end}\n" for row in rows]
    tokenizer(texts[:100])
    begun, tokens = time.perf_counter(), 0
    for place in range(0, len(texts), 1000):
        tokens += sum(map(len, tokenizer(texts[place : place + 1000])["input_ids"]))
    return result(tokens, time.perf_counter() - begun)


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Read, render, tokenise, mask, store and pack: everything that stands before the first training step."""
    from transformers import AutoTokenizer

    from peftcli.data.prepare import prepare
    from peftcli.recipe.schema import DataSpec

    tokenizer = AutoTokenizer.from_pretrained(options.work / "tokenizer")
    spec = DataSpec(
        path=str(options.work / "rows.jsonl"), val_set_size=0.0, packing=True, chat_template=options.template
    )
    begun = time.perf_counter()
    data = prepare(spec, "causal_lm", tokenizer, seed=0)
    return result(data.report.tokens, time.perf_counter() - begun)


def result(tokens: int, seconds: float) -> dict[str, float]:
    """Return speed and peak memory of this process and its largest child."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"tokens_per_second": tokens / seconds, "seconds": seconds, "peak_mb": peak / 1024}


if __name__ == "__main__":
    main()
