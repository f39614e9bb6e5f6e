"""Losses of the tasks: equal to transformers' own, whatever the family does before and after its head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from peftcli.errors import UserError
from peftcli.recipe.schema import TrainingSpec
from peftcli.tasks.lm_head import find_route
from peftcli.tasks.seq2seq_lm import decoder_inputs
from peftcli.tasks.task import Task, TaskSettings, unprepared
from peftcli.tasks.task_table import TASKS
from tests.tiny import DECODERS, SEQ2SEQ, tiny_model

CHANGES: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 4.0},
    "gemma2": {"final_logit_softcapping": 2.0},
}


def task_of(name: str, model: torch.nn.Module, **training: Any) -> Task:
    task = TASKS[name](TaskSettings(None, None, TrainingSpec(**training)))
    assert task.bind(model, unprepared) == []
    return task


def right_padded(rows: list[list[int]], supervised_from: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :supervised_from] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("family", DECODERS)
def test_causal_loss_is_that_of_transformers(family) -> None:
    model = tiny_model(family, **CHANGES.get(family, {}))
    collated = right_padded([[5, 9, 33, 17, 40, 2], [7, 8, 9, 2]], supervised_from=2)
    task = task_of("causal_lm", model)
    batch = task.batch(collated, tokens=10)
    assert "attention_mask" not in batch.inputs  # nothing but padding on the right
    assert (batch.count, batch.supervised) == (6.0, 6)
    terms = task.loss(model, batch)
    wanted = model(**collated, use_cache=False).loss
    torch.testing.assert_close(terms.loss_sum / terms.count, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_seq2seq_loss_is_that_of_transformers(family) -> None:
    model = tiny_model(family, "seq2seq_lm")
    collated = right_padded([[5, 9, 33, 17, 40, 2], [7, 8, 9, 2]], supervised_from=0)
    collated["labels"] = torch.tensor([[11, 12, 2], [13, 2, -100]])
    task = task_of("seq2seq_lm", model)
    terms = task.loss(model, task.batch(collated, tokens=10))
    assert terms.count == 5.0
    wanted = model(**collated).loss
    torch.testing.assert_close(terms.loss_sum / terms.count, wanted, rtol=2e-4, atol=2e-5)


def test_a_model_that_changes_its_logits_unseen_falls_back_to_full_logits() -> None:
    model = tiny_model("llama")
    model.register_forward_hook(
        lambda _m, _a, out: type(out)(logits=out.logits * 1.5) if out.logits is not None else out
    )
    assert find_route(model, {"input_ids": torch.arange(4)[None], "use_cache": False}) is None
    task = TASKS["causal_lm"](TaskSettings(None, None, TrainingSpec()))
    (note,) = task.bind(model, unprepared)
    assert "full logits" in note
    collated = right_padded([[5, 9, 33, 17]], supervised_from=1)
    logits = model(input_ids=collated["input_ids"]).logits
    wanted = torch.nn.functional.cross_entropy(logits[0, :-1], collated["input_ids"][0, 1:], reduction="sum")
    torch.testing.assert_close(task.loss(model, task.batch(collated, tokens=4)).loss_sum, wanted)


def test_smoothing_shapes_the_training_loss_only() -> None:
    model = tiny_model("llama")
    collated = right_padded([[5, 9, 33, 17]], supervised_from=1)
    task = task_of("causal_lm", model, label_smoothing_factor=0.2)
    logits = model(input_ids=collated["input_ids"]).logits[0, :-1]
    wanted = torch.nn.functional.cross_entropy(
        logits, collated["input_ids"][0, 1:], reduction="sum", label_smoothing=0.2
    )
    torch.testing.assert_close(task.loss(model, task.batch(collated, tokens=4)).loss_sum, wanted)
    plain = torch.nn.functional.cross_entropy(logits, collated["input_ids"][0, 1:], reduction="sum")
    torch.testing.assert_close(task.evaluate(model, task.batch(collated, tokens=4)).terms.loss_sum, plain)


def test_left_padding_keeps_its_mask() -> None:
    task = task_of("causal_lm", tiny_model("llama"))
    collated = {key: value.flip(1) for key, value in right_padded([[5, 9, 33], [7, 8]], supervised_from=0).items()}
    assert "attention_mask" in task.batch(collated, tokens=5).inputs


def test_a_decoder_starts_as_its_config_says_where_the_model_has_a_rule_and_where_not() -> None:
    labels = torch.tensor([[7, 8, -100]])
    inner = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48, "head_dim": 8}
    inner |= {"num_attention_heads": 4, "num_key_value_heads": 4, "bos_token_id": 5, "pad_token_id": 3}
    gemma = transformers.T5GemmaConfig(encoder=inner, decoder=inner)  # its own tokens are in `decoder`
    with torch.device("meta"):
        model = transformers.T5GemmaForConditionalGeneration(gemma)
    assert decoder_inputs(model, labels).tolist() == [[5, 7, 8]]
    without = SimpleNamespace(config=SimpleNamespace(pad_token_id=1, decoder_start_token_id=None))
    assert decoder_inputs(without, torch.tensor([[-100, 8, 9]])).tolist() == [[1, 1, 8]]
    training = TrainingSpec.model_validate({"fast_paths": {"head_loss": False}})
    task = TASKS["seq2seq_lm"](TaskSettings(None, None, training))
    assert task.bind(model, unprepared) == []


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_where_the_config_does_not_say_what_a_decoder_begins_with_the_generation_settings_do(family) -> None:
    model = tiny_model(family, "seq2seq_lm")
    model.config.decoder_start_token_id, model.generation_config.decoder_start_token_id = None, 7
    labels = torch.tensor([[11, 12, 2], [13, 2, -100]])
    assert decoder_inputs(model, labels).tolist() == [[7, 11, 12], [7, 13, 2]]
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(UserError, match="does not say which token its decoder begins with"):
        decoder_inputs(model, labels)
