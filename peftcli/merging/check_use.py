"""Use the merged model in a process with transformers alone, and compare what it gives with what this program gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from peftcli.data.chat.chat_template import ChatTemplate, FilledTemplate
from peftcli.data.chat.named_templates import choose_template
from peftcli.data.read.records import RowError
from peftcli.data.rows.row_set import Row, sequences_of
from peftcli.deliverables import use_alone
from peftcli.distributed.launching import SIZES
from peftcli.errors import UserError, VerificationFailed
from peftcli.ignored_label import IGNORED
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.models.load.dtypes import dtype_name
from peftcli.models.model_tasks import auto_name
from peftcli.tasks.generation import generate
from peftcli.tasks.task_table import task_info

PROMPTS = 2
"""Rows whose prompts are answered."""
LONGEST = 256
"""Tokens of a prompt."""
NEW_TOKENS = 24
"""Longest answer in tokens."""
_GREETING = [{"role": "user", "content": "Hello"}]
_TOLERANCE = 1e-3
"""Of a classifier's logits: the same weights in the same type, in another process."""


@dataclass(frozen=True)
class Usage:
    """What the merged model gives here: another process must give the same.

    Args:
        request: for `use_alone`.
        expected: some of the keys that it returns.
    """

    request: dict[str, Any]
    expected: dict[str, Any]


def use_here(
    model: PreTrainedModel, rows: Sequence[Row], run: RunToMerge, stops: tuple[int, ...], directory: Path
) -> Usage:
    """Answer the prompts of some rows with the merged model, as `peft predict` does.

    Args:
        model: the merged model, as it computes.
        rows: of the run's data.
        run: the run.
        stops: tokens at which the base ends a text.
        directory: of the merged model.
    """
    info = task_info(run.recipe.task)
    room = run.anatomy.max_positions or 2 * LONGEST
    new_tokens = min(NEW_TOKENS, room // 2)
    texts = [text for row in rows[:PROMPTS] if (text := _prompt(row, run, min(LONGEST, room - new_tokens)))]
    encoded = [run.tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts]
    request = {
        "model": str(directory),
        "auto": auto_name(model.config, info.name),
        "texts": texts,
        "conversations": [],
        "new_tokens": new_tokens,
        "dtype": dtype_name(model.dtype),
        "device": str(model.device),
        "trust_remote_code": run.spec.trust_remote_code,
    }
    expected: dict[str, Any] = {"ids": [one["input_ids"][0].tolist() for one in encoded], "prompts": list(texts)}
    inputs = [{key: one[key].to(model.device) for key in ("input_ids", "attention_mask")} for one in encoded]
    if model.can_generate():
        model.generation_config.eos_token_id = [*stops, *run.texts.stop_token_ids] or None
        lines = [generate(model, one, run.tokenizer, max_new_tokens=new_tokens)[0] for one in inputs]
        expected["answers"] = [line["prediction"] for line in lines]
        expected["tokens"] = [line["scores"]["tokens"] for line in lines]
        _add_greeting(run, request, expected)
    if not model.config.is_encoder_decoder or not model.can_generate():
        with torch.no_grad():
            logits = [model(**one).logits[0].float() for one in inputs]
        expected["logits"] = [(one[-1] if model.can_generate() else one).tolist() for one in logits]
    if info.label_kind is not None:
        expected["labels"] = [model.config.id2label[number] for number in sorted(model.config.id2label)]
    return Usage(request, expected)


def check_use(usage: Usage) -> None:
    """Use the merged model, now with all its files, in a process of its own.

    Raises:
        VerificationFailed: that process ends with an error, or gives something else; says what.
    """
    done = subprocess.run(
        [sys.executable, str(Path(use_alone.__file__))],
        input=json.dumps(usage.request), capture_output=True, text=True, encoding="utf-8", check=False,
        env={key: value for key, value in os.environ.items() if key not in SIZES},
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise VerificationFailed(
            "a process with transformers alone cannot use the merged model (exit code "
            f"{done.returncode}): {lines[-1] if lines else 'it said nothing'}\n    merge with --no-verify to look at it"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    for key, expected in usage.expected.items():
        got = found[key] if key == "labels" else found[key][: len(expected)]
        if not (_close(got, expected) if key == "logits" else got == expected):
            raise VerificationFailed(
                f"with transformers alone the merged model gives another result: {key} {got!r}, expected {expected!r}\n"
                "    merge with --no-verify to look at it, and please report this"
            )


def _close(found: list[Any], expected: list[Any]) -> bool:
    """Tell whether the logits of each prompt are those expected."""
    pairs = [(torch.tensor(one), torch.tensor(two)) for one, two in zip(found, expected, strict=True)]
    return all(
        one.shape == two.shape and bool((one - two).abs().max() <= _TOLERANCE * max(1.0, float(two.abs().max())))
        for one, two in pairs
    )


def _prompt(row: Row, run: RunToMerge, longest: int) -> str:
    """Return the text before a row's first learnt token, special tokens written out: its last `longest` tokens.

    Where all of the row is learnt, it is half of the row.
    """
    reads_text = task_info(run.recipe.task).reads == "text"
    row = sequences_of(row)[0] if reads_text else row
    ids, labels = row.input_ids, row.labels
    if reads_text and isinstance(labels, np.ndarray):
        learnt = np.flatnonzero(labels != IGNORED)
        first = int(learnt[0]) if len(learnt) else len(ids)
        ids = ids[: first if first > 1 else max(1, len(ids) // 2)]
    text: str = run.tokenizer.decode(ids[-longest:].tolist(), clean_up_tokenization_spaces=False)
    return text


def _add_greeting(run: RunToMerge, request: dict[str, Any], expected: dict[str, Any]) -> None:
    """Have a conversation rendered by the template that leaves with the model, if it takes one turn of a user."""
    own = choose_template(None, run.tokenizer)
    text = run.texts.chat_template or (own.text if own else None)
    if text is None:
        return
    template = FilledTemplate(ChatTemplate("tokenizer", text), run.tokenizer)
    try:
        rendered, _spans = template.render(_GREETING, None, generate=True)
    except (RowError, UserError):
        return
    request["conversations"] = [template.as_read(_GREETING)]
    expected["prompts"].append(rendered)
