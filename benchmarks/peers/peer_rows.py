"""The rows, in the format of each peer: the first N of one order, so that those of `few` are among those of `many`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common.demo import articles, encoder_checkpoint
from benchmarks.peers.programs.shared_settings import LONGEST, prompt, reply

Row = dict[str, Any]
SEED = 3
ARTICLE_LENGTH = 64
"""Tokens of an article at most."""


def rows_folder(material: Path, data: Path, count: int, encoder: bool) -> Path:
    """Return the folder with the first `count` rows in all formats, written if it is not there yet.

    Args:
        data: GSM8K as JSON lines.
        encoder: articles with their classes instead.
    """
    folder = material / f"{'articles' if encoder else data.stem}-{count}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if encoder:
            _lines(partial / "articles.jsonl", ({"text": text, "label": kind} for text, kind in articles()[:count]))
        else:
            _conversations(partial, shuffled(data)[:count])
        partial.rename(folder)
    return folder


def shuffled(data: Path) -> list[Row]:
    """Return the questions and answers of a file in the order in which they are taken."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    random.Random(SEED).shuffle(rows)
    return rows


def _conversations(folder: Path, rows: list[Row]) -> None:
    pairs = [(row["question"], row["answer"]) for row in rows]
    said = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in pairs]
    _lines(folder / "prompt_completion.jsonl", ({"prompt": q, "completion": a} for q, a in pairs))
    _lines(folder / "chat_prompt_completion.jsonl", ({"prompt": [q], "completion": [a]} for q, a in said))
    _lines(folder / "messages.jsonl", ({"messages": turns} for turns in said))
    alpaca = [{"instruction": q, "input": "", "output": a} for q, a in pairs]
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    _whole(folder / "alpaca/rows.json", alpaca)
    _whole(folder / "alpaca/dataset_info.json", {"rows": {"file_name": "rows.json", "columns": columns}})
    _whole(folder / "litgpt/train.json", alpaca)
    _whole(folder / "litgpt/val.json", alpaca[:1])  # litgpt wants a row for validation


def _lines(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _whole(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def token_count(folder: Path, model: Path, encoder: bool) -> int:
    """Return how many tokens the rows of a folder have, padding not counted.

    Args:
        model: the directory of the decoder; the encoder is the demo's.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str((encoder_checkpoint() if encoder else model) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if encoder:
        longest, special, text = ARTICLE_LENGTH, True, _article
    else:
        longest, special, text = LONGEST, False, _conversation
    file = folder / ("articles.jsonl" if encoder else "prompt_completion.jsonl")
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return sum(min(longest, len(tokenizer.encode(text(row), add_special_tokens=special).ids)) for row in rows)


def _conversation(row: Row) -> str:
    return prompt(row["prompt"]) + reply(row["completion"])


def _article(row: Row) -> str:
    return str(row["text"])


def stored_as(dtype: str, model: Path, material: Path) -> Path:
    """Return the model's checkpoint with its weights in `dtype`: some peers compute in the dtype that is stored."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config.get("dtype", config.get("torch_dtype")) == dtype:
        return model
    target = material / f"{model.name}-{dtype}"
    if not (target / "config.json").exists():
        import torch
        from safetensors.torch import load_file, save_file

        shutil.copytree(model, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json"))
        weights = {
            name: value.to(getattr(torch, dtype)) for name, value in load_file(model / "model.safetensors").items()
        }
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
        _whole(target / "config.json", {**config, "dtype": dtype})
    return target
