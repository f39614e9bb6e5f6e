"""What is measured: the cells of the table, each one thing that both sides train. No import here costs time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
ADALORA = {"init_r": 12, "target_r": 8, "lora_alpha": 16, "tinit": 1, "tfinal": 1, "deltaT": 1, "orth_reg_weight": 0.5}
VIRTUAL_TOKENS = 20
CLASSES = 5
LEARNING_RATE = 1e-3
PACK_LENGTH = 2048
MEAN_ROW = 190
"""Tokens of a GSM8K row, about: a packed step holds as many as a padded one."""


@dataclass(frozen=True)
class Cell:
    """One thing that is measured on both sides.

    Args:
        task: causal_lm, sequence_classification or preference.
        shape: a key of `material.SHAPES`, or `minilm` (the demo's encoder).
        method: lora, qlora, adalora, prefix_tuning, adapter, compacter, bitfit.
        dtype: float32 or bfloat16, of weights and products; auto leaves the choice to ours, the baseline's is float32.
        rows: gsm8k; for classification articles (cut at 256 tokens, so that most are equally long) or questions; for
            preference pairs.
        checkpointing: whether activations are recomputed.
        tuned: give the baseline its best settings (length grouping) and ours its own default order.
        packed: ours packs rows, the baseline pads them.
        compiled: torch_compile on both sides.
        dropout: False takes the base's dropout out on both sides, so that losses can be compared.
        steps, batch_size: length of the run; rows of a step.
    """

    task: str = "causal_lm"
    shape: str = "135m"
    method: str = "lora"
    dtype: str = "float32"
    rows: str = "gsm8k"
    checkpointing: bool = False
    tuned: bool = False
    packed: bool = False
    compiled: bool = False
    dropout: bool = True
    steps: int = 6
    batch_size: int = 8

    @property
    def name(self) -> str:
        """How the table and `--cells` call it."""
        marks = {"questions": self.rows == "questions", "ckpt": self.checkpointing, "tuned": self.tuned}
        marks |= {"packed": self.packed, "compile": self.compiled, "no-dropout": not self.dropout}
        extra = "".join(f"+{mark}" for mark, there in marks.items() if there)
        return f"{self.task}/{self.shape}/{self.method}/{self.dtype}{extra}"

    @property
    def same_order(self) -> bool:
        """Whether both sides see the same rows in the same step."""
        return not (self.tuned or self.packed)

    @property
    def warm_up(self) -> int:
        """First steps that are left out of the speed: compiling takes several."""
        return self.steps // 2 if self.compiled else 1

    @property
    def limit(self) -> float:
        """Seconds that the cell may take on one card where the time is limited: of experience with such models."""
        return {"1b": 40.0, "8b": 120.0}.get(self.shape, 600.0) + (60.0 if self.compiled else 0.0)

    @property
    def packs(self) -> int:
        """Packs of a step that hold about as many tokens as its rows."""
        return max(1, round(self.batch_size * MEAN_ROW / PACK_LENGTH))

    @property
    def baseline_dtype(self) -> str:
        """The dtype of the other side."""
        return "float32" if self.dtype == "auto" else self.dtype

    def as_json(self) -> str:
        """Return the cell for the command line of a side."""
        return json.dumps(asdict(self))


def parse(text: str) -> Cell:
    """Return the cell that `as_json` wrote."""
    return Cell(**json.loads(text))


def _encoder(method: str, **changes: Any) -> Cell:
    cell = Cell("sequence_classification", "minilm", method, rows="articles", steps=10, batch_size=16)
    return replace(cell, **changes)


ENCODER_METHODS = ("lora", "bitfit", "adalora", "adapter", "compacter", "prefix_tuning")
CPU_CELLS = [
    Cell(),
    Cell(tuned=True),
    Cell(dtype="bfloat16"),
    Cell(dtype="auto"),
    Cell(checkpointing=True),
    Cell(method="qlora"),
    Cell(method="adalora"),
    Cell(method="prefix_tuning"),
    Cell(method="adapter"),
    Cell(method="bitfit", shape="gpt2"),  # a Llama has no biases
    *(_encoder(method) for method in ENCODER_METHODS),
    _encoder("lora", dtype="bfloat16"),
    *(_encoder(method, rows="questions", steps=20) for method in ENCODER_METHODS),
    _encoder("lora", rows="questions", steps=20, tuned=True),
]
CUDA_CELLS = [
    Cell(shape=shape, method=method, dtype="bfloat16", packed=packed, compiled=compiled, steps=20, batch_size=32)
    for compiled, packed in ((False, True), (False, False), (True, True), (True, False))
    for shape in ("1b", "8b")
    for method in ("lora", "qlora")
]
"""In the order of what a short loan of a card is to tell."""


def tiny(cell: Cell) -> Cell:
    """Return the same cell on a model of a few thousand weights: shows that it runs, measures nothing."""
    shape = {"minilm": "tiny-bert", "gpt2": "tiny-gpt2"}.get(cell.shape, "tiny")
    return replace(cell, shape=shape, steps=min(cell.steps, 4), batch_size=4)
