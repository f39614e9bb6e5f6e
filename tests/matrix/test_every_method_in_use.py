"""Methods x tasks after training: `peft predict` gives what the live model gives, row by row, without padding or cache.

Texts are checked against a greedy loop of whole forward passes, so that the cache, left padding and the saved files are
all on one side only. Resumed runs end in the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.data.prepare import prepare_for_prediction
from peftcli.errors import Stopped
from peftcli.ignored_label import IGNORED
from peftcli.protocol.registry import registry
from peftcli.training import run as run_module
from peftcli.training.session import Session
from tests.command_line import Cli
from tests.matrix.runs import TASKS, Workshop, tiny_rows, watched_training
from tests.recipes import CtrlC, Recorder, write_jsonl

METHODS = registry.names()
NEW_TOKENS = 4
ANSWERS = ("completion", "target", "label")
TRIALS = [(method, family) for method in METHODS for family in ("qwen2", "bart", "bert")]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("use"))


@pytest.mark.parametrize(("method", "family"), TRIALS)
def test_predictions_are_those_of_the_live_model(
    workshop: Workshop,
    cli: Cli,
    tmp_path: Path,
    method: str,
    family: str,
) -> None:
    rows = [
        {key: value for key, value in row.items() if key not in ANSWERS}
        for row in tiny_rows(TASKS.get(family, "causal_lm"), 7)
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    loaded = workshop.recipe("used", family, method, training__learning_rate=0.03)
    session = watched_training(loaded).session
    assert session is not None
    done = cli("predict", loaded.recipe.output_dir, "--input", file)
    assert done.code == 0, done.err
    predicted = [json.loads(line) for line in done.out.splitlines()]
    expected = live_predictions(session, file)
    assert len(predicted) == len(expected) == 7
    for one, other in zip(predicted, expected, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-3, abs=1e-4)


def live_predictions(session: Session, file: Path) -> list[dict[str, Any]]:
    """Return the trained model's predictions, a row at a time."""
    recipe = session.recipe
    assert recipe.data is not None
    rows = prepare_for_prediction(str(file), recipe.data, recipe.task, session.tokenizer)
    session.model.eval()
    with torch.no_grad():
        return [_live_prediction(session, session.batches.collator.batch([row], generate=True)) for row in rows]


def _live_prediction(session: Session, batch: Any) -> dict[str, Any]:
    if not session.task.info.generates:
        (predicted,) = session.task.predict(session.model, batch)
        return predicted
    ids, logprobs = [], []
    given = {key: batch.inputs[key] for key in ("input_ids", "attention_mask")}
    end = session.tokenizer.eos_token_id
    start = getattr(session.model.config, "decoder_start_token_id", None)
    for _ in range(NEW_TOKENS):
        written = torch.tensor([ids], dtype=torch.long)
        if start is None:
            whole = torch.cat([given["input_ids"], written], dim=1)
            labels = whole.clone()
            labels[:, : given["input_ids"].shape[1]] = IGNORED  # says where the prompt ends
            inputs = {"input_ids": whole, "attention_mask": torch.ones_like(whole), "labels": labels}
        else:
            inputs = {**given, "decoder_input_ids": torch.cat([torch.tensor([[start]]), written], dim=1)}
        prepared = session.attachment.prepare_inputs(inputs)
        prepared.pop("labels", None)
        logits = session.model(**prepared, use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        logprobs.append(float(logits.float().log_softmax(-1).max()))
        if ids[-1] == end:
            break
    text = session.tokenizer.decode(ids, skip_special_tokens=True)
    return {"prediction": text, "scores": {"mean_logprob": sum(logprobs) / len(ids), "tokens": len(ids)}}


ON_4_BITS: list[dict[str, Any]] = [
    {"name": "qlora", "r": 4, "lora_dropout": 0.2},
    {"name": "qlora", "r": 4, "use_dora": True},
    {"name": "qlora", "r": 4, "init_lora_weights": "loftq"},
    {"name": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1},
]
WITH_MORE_STATE = ["qlora", "adalora", "prefix_tuning", "prompt_tuning", "mam", "unipelt", "full", "freeze"]
"""Where a checkpoint holds more than the adapter, or a whole model; the others resume in tests/training."""

RESUMED: list[tuple[str, str, dict[str, Any]]] = [
    *((method, "bart", {}) for method in WITH_MORE_STATE),
    *((method["name"], "gpt2", {"method": method, "model__load_in_4bit": True}) for method in ON_4_BITS),
]


@pytest.mark.parametrize(("method", "family", "changes"), RESUMED)
def test_a_run_that_was_stopped_ends_in_the_same_bytes(
    workshop: Workshop, method: str, family: str, changes: dict[str, Any]
) -> None:
    whole, parts = (
        workshop.recipe(name, family, method, training__max_steps=4, **changes) for name in ("whole", "parts")
    )
    uninterrupted, first, second = Recorder(), CtrlC(2), Recorder()
    run_module.train(whole, reporter=uninterrupted, overwrite=True)
    with pytest.raises(Stopped, match="after step 2 of 4"):
        run_module.train(parts, reporter=first, overwrite=True)
    run_module.train(parts, reporter=second, resume=True)
    assert first.losses + second.losses == uninterrupted.losses and len(second.losses) == 2
    one, other = weights_of(whole.recipe.output_dir), weights_of(parts.recipe.output_dir)
    assert one and one == other


def weights_of(run: str | None) -> dict[str, bytes]:
    """Return the bytes of a run's saved tensors, by file."""
    assert run is not None
    files = [*Path(run).glob("adapter/*.safetensors"), *Path(run).glob("model/*.safetensors")]
    return {file.name: file.read_bytes() for file in files}
