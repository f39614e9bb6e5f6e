"""What is predicted, and by whom: rows of token ids, one adapter for both sides, and the command line of each side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.demo import articles, encoder_checkpoint
from benchmarks.peers.programs.shared_settings import prompt, reply

HERE = Path(__file__).resolve().parent
DEFAULT = 8
"""Rows of a batch that the Trainer takes by itself; `generate` has no default."""
LONGEST = {"encoder": 256, "decoder": 512}
CLASSES = 5


@dataclass(frozen=True)
class Side:
    """One way to predict.

    Args:
        name: in the table.
        command: its command line; `{}`-words are filled in by `words`.
        batch: rows of a batch, of the baseline.
    """

    name: str
    command: tuple[str, ...]
    batch: int = DEFAULT


@dataclass(frozen=True)
class Work:
    """One thing that is predicted: ours first, then what it is compared with.

    Args:
        name: for `--works` and the program of the baseline.
        says: what it is, for the table.
        model: encoder or decoder.
        few, many: rows of the two runs of a repeat.
        counts: which tokens the speed counts.
    """

    name: str
    says: str
    model: str
    few: int
    many: int
    counts: str
    sides: tuple[Side, ...]


_PEFT = ("{python}", "-m", "peftcli")
_PREDICT = Side("peft predict", (*_PEFT, "predict", "{run}", "--input", "{rows}", "-o", "{out}"))
_EVAL = Side("peft eval", (*_PEFT, "eval", "{run}", "--data", "{rows}", "--json"))
_TEXTS = Side("peft predict", (*_PREDICT.command, "--max-new-tokens", "{new_tokens}"))


def _baseline(name: str, batch: int = DEFAULT) -> Side:
    program = str(HERE / "hf_prediction.py")
    words = ("{work}", "{checkpoint}", "{adapter}", "{rows}", "{out}", "{dtype}", "{batch}", "{new_tokens}")
    return Side(name, ("{python}", program, *words), batch)


WORKS = (
    Work(
        "classes", "classes of news articles of at most 256 tokens by a six-layer encoder", "encoder", 16, 1016,
        "read", (_PREDICT, _EVAL, _baseline("Trainer.predict")),
    ),
    Work(
        "questions", "classes of GSM8K questions of different lengths by a six-layer encoder", "encoder", 16, 1016,
        "read", (_PREDICT, _EVAL, _baseline("Trainer.predict")),
    ),
    Work(
        "loss", "the loss on GSM8K answers by a decoder", "decoder", 16, 176, "read",
        (_EVAL, _baseline("Trainer.evaluate")),
    ),
    Work(
        "texts", "greedy answers to GSM8K questions by a decoder", "decoder", 16, 96, "written",
        (_TEXTS, _baseline("generate"), _baseline("generate, 16 rows", 16)),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Material:
    """Where everything is that the sides read.

    Args:
        folder: of rows, runs and outputs.
        decoder: a checkpoint of the decoder.
        data: GSM8K as JSON lines.
    """

    folder: Path
    decoder: Path
    data: Path

    def checkpoint(self, model: str) -> Path:
        """Return the checkpoint of the encoder or of the decoder."""
        return encoder_checkpoint() if model == "encoder" else self.decoder

    def rows(self, work: Work, count: int) -> Path:
        """Return the first `count` rows of a work as token ids, written if they are not there yet."""
        file = self.folder / f"{work.name}-{self.decoder.name}-{count}.jsonl"
        if not file.exists():
            if work.model == "encoder":
                made = self._labelled(count, questions=work.name == "questions")
            else:
                made = self._answers(count, work.counts == "read")
            partial = file.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
            partial.rename(file)
        return file

    def trained(self, model: str, dtype: str) -> tuple[Path, Path]:
        """Return a run of two steps and its adapter as HF peft reads it, made if they are not there yet."""
        home = self.folder / f"{model}-{self.checkpoint(model).name}-{dtype}"
        run, adapter = home / "run", home / "adapter"
        if not (adapter / "adapter_config.json").exists():
            home.mkdir(exist_ok=True)
            recipe = home / "recipe.yaml"  # JSON is YAML
            whole = _recipe(model, str(self.checkpoint(model)), str(self._to_train(model)), dtype)
            recipe.write_text(json.dumps({**whole, "output_dir": str(run)}), encoding="utf-8")
            for words in (["train", str(recipe), "--overwrite"], ["export", str(run), "-o", str(adapter)]):
                subprocess.run([sys.executable, "-m", "peftcli", *words, "--quiet"], check=True)
        return run, adapter

    def _to_train(self, model: str) -> Path:
        """Return some forty rows with all classes, or with answers."""
        work = next(one for one in WORKS if one.model == model and one.counts == "read")
        return self.rows(work, 40)

    def _labelled(self, count: int, *, questions: bool) -> Iterator[dict[str, Any]]:
        """Yield articles with their classes, or questions, whose classes mean nothing."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint("encoder"))
        asked = [(row["question"], number % CLASSES) for number, row in enumerate(self._problems(count))]
        for text, label in asked if questions else articles()[:count]:
            ids = tokenizer(text, truncation=True, max_length=LONGEST["encoder"])["input_ids"]
            yield {"input_ids": ids, "labels": label}

    def _problems(self, count: int) -> list[dict[str, Any]]:
        lines = self.data.read_text(encoding="utf-8").splitlines()[:count]
        return [json.loads(line) for line in lines]

    def _answers(self, count: int, whole: bool) -> Iterator[dict[str, Any]]:
        """Yield questions in the model's chat template; with the answers, which alone are learnt, where `whole`."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.decoder)
        for row in self._problems(count):
            asked, answer = (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (prompt(row["question"]), reply(row["answer"]))
            )
            ids = [*asked, *answer][: LONGEST["decoder"]]
            labels = [-100] * len(asked) + ids[len(asked) :]
            yield {"input_ids": ids, "labels": labels} if whole else {"input_ids": asked}


def _recipe(model: str, checkpoint: str, rows: str, dtype: str) -> dict[str, Any]:
    """Return the recipe of two steps of LoRA on the query and value projections."""
    encoder = model == "encoder"
    return {
        "model": {"name_or_path": checkpoint, "dtype": dtype, **({"num_labels": CLASSES} if encoder else {})},
        "task": "sequence_classification" if encoder else "causal_lm",
        "data": {"path": rows, "format": "pretokenized", "val_set_size": 0, "max_length": LONGEST[model]},
        "method": {"name": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["attn.q", "attn.v"]},
        "training": {"max_steps": 2, "learning_rate": 1e-3, "save_strategy": "no", "bf16": dtype == "bfloat16"},
    }


def words(work: Work, side: Side, material: Material, rows: Path, dtype: str, new_tokens: int) -> Mapping[str, str]:
    """Return what the `{}`-words of a side's command stand for, but for `out`."""
    run, adapter = material.trained(work.model, dtype)
    return {
        "python": sys.executable, "run": str(run), "rows": str(rows), "work": work.name,
        "checkpoint": str(material.checkpoint(work.model)), "adapter": str(adapter), "dtype": dtype,
        "batch": str(side.batch), "new_tokens": str(new_tokens),
    }  # fmt: skip
