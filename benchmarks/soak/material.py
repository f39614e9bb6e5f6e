"""The tiny models, rows and recipes that every case starts from, written once for each worker.

Two bases (a decoder, an encoder), rows in every format and compression, and recipes that train eight
steps in half a second: the best adapter replaced, stopped early, with generated samples, a whole model, a classifier.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import save_tiny

DECODER, ENCODER = "decoder-base", "encoder-base"
WORDS = (
    "the", "cat", "sat", "on", "mat", "and", "dog", "ran", "to", "red", "blue", "green", "house", "that", "was", "not",
    "very", "good", "or", "bad",
)  # fmt: skip
FORMATS = (
    "jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "json.bz2", "csv.xz", "parquet.gz",
)  # fmt: skip
"""Suffixes of `rows.SUFFIX`, which hold the same rows."""


def write_material(directory: Path) -> None:
    """Write models, rows and recipes into an empty directory: the same bytes every time.

    A base is known again by 64 KB of samples of a file (`models.load.identity`): the decoder's weights are no more than
    that, so that each changed bit of them can be noticed.
    """
    save_tiny(directory / DECODER, "llama", num_hidden_layers=1, intermediate_size=32)
    save_tiny(directory / ENCODER, "bert", "base")
    draw = random.Random(0)
    pairs = [{"prompt": _text(draw, 3 + i % 5), "completion": f" {_text(draw, 2 + i % 3)}"} for i in range(30)]
    _write_lines(directory / "pairs.jsonl", pairs)
    _write_lines(directory / "new.jsonl", [{"prompt": _text(draw, 3)} for _ in range(3)])
    classes = [{"text": _text(draw, 4 + i % 6), "label": ("good", "bad", "ugly")[i % 3]} for i in range(24)]
    _write_lines(directory / "classes.jsonl", classes)
    for suffix in FORMATS:
        (directory / f"rows.{suffix}").write_bytes(encoded_rows(suffix, pairs[:12]))
    for name, recipe in recipes():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def recipes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of each recipe; the output directory is always `run`."""
    training = {
        "per_device_train_batch_size": 4, "learning_rate": 0.02, "bf16": False, "device": "cpu", "logging_steps": 1,
        "max_steps": 8, "save_steps": 2, "eval_steps": 2,
    }  # fmt: skip
    plain: dict[str, Any] = {
        "model": {"name_or_path": f"./{DECODER}"},
        "task": "causal_lm",
        "data": {"path": "pairs.jsonl", "val_set_size": 0.2, "max_length": 40, "num_proc": 1},
        "method": {"name": "lora", "r": 4, "lora_dropout": 0.1},
        "training": training,
        "output_dir": "run",
    }
    yield "best", plain
    yield "early", plain | {"training": training | {"early_stopping_patience": 1, "early_stopping_threshold": 0.04}}
    yield "samples", plain | {"training": training | {"eval_generate": 2, "max_new_tokens": 4, "max_steps": 6}}
    yield "full", plain | {"method": {"name": "full"}, "training": training | {"max_steps": 4}}
    encoder = {"model": {"name_or_path": f"./{ENCODER}"}, "task": "sequence_classification"}
    yield "classes", plain | encoder | {"data": plain["data"] | {"path": "classes.jsonl"}}
    yield "merged", plain | {"model": {"name_or_path": "./merged"}}
    yield "shards", plain | {"model": {"name_or_path": "./shards"}}


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(encoded_rows("jsonl", rows))


def encoded_rows(suffix: str, rows: list[dict[str, Any]]) -> bytes:
    """Return rows in the format and compression of a file's suffix.

    Raises:
        Exception: the format cannot hold such rows: pyarrow's and csv's own errors.
    """
    kind, _, compression = suffix.partition(".")
    if compression:
        pack = {"gz": lambda raw: gzip.compress(raw, mtime=0), "bz2": bz2.compress, "xz": lzma.compress}[compression]
        return pack(encoded_rows(kind, rows))
    if kind in ("parquet", "arrow"):
        return _arrow(kind, rows)
    if kind in ("csv", "tsv"):
        text = io.StringIO(newline="")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(text, columns, delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode("utf-8", "surrogatepass")
    if kind == "json":
        return json.dumps(rows).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _arrow(kind: str, rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet

    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, sink)
    else:
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()
