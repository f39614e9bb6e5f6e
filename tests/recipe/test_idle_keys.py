"""Keys that do nothing where they stand are named, and only those that were written."""

from __future__ import annotations

import pytest

from peftcli.names import NAMES
from peftcli.recipe.checks.idle_keys import KnownRows, idle_keys
from peftcli.recipe.load_recipe import LoadedRecipe, load_recipe

RECIPE = """\
model: {name_or_path: org/model}
task: TASK
data: {path: train.jsonl}
method: {name: lora}
"""

CASES = [
    ("causal_lm", ["model.bnb_4bit_use_double_quant=false"], "model.bnb_4bit_use_double_quant"),
    ("causal_lm", ["model.min_quantized_share=0.5"], "model.min_quantized_share"),
    ("causal_lm", ["data.val_set_size=3", "data.validation={path: v.jsonl}"], "data.val_set_size"),
    ("causal_lm", ["data.val_set_size=0.1", "training.eval_strategy=no"], "data.val_set_size"),
    ("causal_lm", ["data.group_by=x", "data.val_set_size=0"], "data.group_by"),
    ("causal_lm", ["data.split_seed=1", "data.val_set_size=0"], "data.split_seed"),
    ("sequence_classification", ["data.stratify=true", "data.validation={path: v}"], "data.stratify"),
    ("sequence_classification", ["data.max_fully_masked=0.5"], "data.max_fully_masked"),
    ("causal_lm", ["data.validation={path: v, weight: 2.0}"], "data.validation.weight"),
    ("causal_lm", ["training.max_steps=2", "training.num_train_epochs=3"], "training.num_train_epochs"),
    ("causal_lm", ["data.streaming=true", "training.max_steps=2", "data.val_set_size=2",
                   "training.train_sampling_strategy=sequential"], "training.train_sampling_strategy"),
    ("causal_lm", ["training.save_strategy=no", "training.save_total_limit=2"], "training.save_total_limit"),
    ("sequence_classification", ["training.train_head=false", "training.head_learning_rate=0.1"],
     "training.head_learning_rate"),
    ("sequence_classification", ["model.problem_type=multi_label", "training.label_smoothing_factor=0.1"],
     "training.label_smoothing_factor"),
    ("sequence_classification", ["training.max_new_tokens=5"], "training.max_new_tokens"),
    ("causal_lm", ["training.optim=sgd", "training.adam_beta1=0.8"], "training.adam_beta1"),
    ("causal_lm", ["training.optim=lion_8bit", "training.adam_epsilon=0.1"], "training.adam_epsilon"),
    ("causal_lm", ["method={name: freeze, trainable: norms, num_layers: 3}"], "method.num_layers"),
    ("causal_lm", ["method={name: compose, parts: [{name: prefix_tuning, prefix_projection: false, "
                   "encoder_hidden_size: 9}]}"], "method.parts.0.encoder_hidden_size"),
    ("causal_lm", ["method={name: prompt_tuning, prompt_tuning_init: random, sample_vocab_size: 9}"],
     "method.sample_vocab_size"),
    *(("sequence_classification", ["data.val_set_size=0", f"training.{key}"], f"training.{key.partition('=')[0]}")
      for key in ("metrics=[f1_macro]", "eval_steps=2", "per_device_eval_batch_size=2", "greater_is_better=true")),
]  # fmt: skip


def _load(tmp_path, task: str, *overrides: str) -> LoadedRecipe:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.replace("TASK", task))
    return load_recipe(file, overrides, NAMES)


@pytest.mark.parametrize(("task", "overrides", "key"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_idle_key_is_named(tmp_path, task: str, overrides: list[str], key: str) -> None:
    (note,) = idle_keys(_load(tmp_path, task, *overrides), NAMES)
    assert note.startswith(f"{key} has no effect: ")


@pytest.mark.parametrize("task", sorted(NAMES.tasks))
def test_what_is_not_written_is_not_named(tmp_path, task: str) -> None:
    loaded = _load(tmp_path, task, "training.eval_strategy=no", "training.max_steps=3", "training.optim=sgd")
    assert idle_keys(loaded, NAMES) == []
    off = _load(tmp_path, task, "data.val_set_size=0", "data.stratify=false", "training.metrics=[]")
    assert idle_keys(off, NAMES) == []


def test_what_only_the_rows_tell(tmp_path) -> None:
    rows = KnownRows(["text"], None, validation=0)
    loaded = _load(tmp_path, "causal_lm", "data.chat_template=llama3", "training.early_stopping_patience=2")
    assert idle_keys(loaded, NAMES) == []
    assert idle_keys(loaded, NAMES, rows) == [
        "data.chat_template has no effect: rows of the format text are no conversations",
        "training.early_stopping_patience has no effect: there are no validation rows",
    ]
    assert idle_keys(_load(tmp_path, "causal_lm", "data.chat_template=none"), NAMES, rows) == []
    template = _load(tmp_path, "causal_lm", "data.chat_template=llama3")
    for formats in ([], ["text", "messages"]):  # a stream that is not read yet, and one source of two
        assert idle_keys(template, NAMES, KnownRows(formats, None, validation=0)) == []
