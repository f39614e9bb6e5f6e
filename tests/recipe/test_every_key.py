"""Each key of a recipe does something: two values of it differ in what a session is built from, or there is a reason.

A key that comes later fails here until it has an example, or the name of what shows its effect.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import (
    DataSource,
    DataSpec,
    DistributedSpec,
    FastPathsSpec,
    ModelSpec,
    Recipe,
    TrainingSpec,
)
from peftcli.record.run_directory import RunDirectory
from peftcli.record.train_state import TrainState
from peftcli.training.run import train
from peftcli.training.run_header import header
from peftcli.training.setup import build_session
from tests.recipes import Recorder, chat_rows, class_rows, write_jsonl

CLASSES = "sequence_classification"
EVALUATED = {"data__val_set_size": 4, "training__eval_steps": 1}
Example = tuple[str, dict[str, Any], Any, Any]
"""Task, other keys (two underscores for a dot), and two values of the key."""

EXAMPLES: dict[str, Example] = {
    "seed": ("causal_lm", {}, 0, 1),
    "model.dtype": ("causal_lm", {}, "float32", "bfloat16"),
    "model.problem_type": (CLASSES, {"data__path": "numbers"}, "single_label", "regression"),
    "model.new_special_tokens": ("causal_lm", {}, [], ["<a>"]),
    "data.columns": ("causal_lm", {}, {"prompt": "prompt"}, {"prompt": "completion", "completion": "prompt"}),
    "data.format": ("causal_lm", {}, "prompt_completion", "question_answer"),
    "data.template": ("causal_lm", {}, None, "{prompt}: "),
    "data.val_set_size": ("causal_lm", {}, 0, 4),
    "data.validation": ("causal_lm", {}, None, {"path": "rows"}),
    "data.split_seed": ("causal_lm", {"data__val_set_size": 4}, None, 1),
    "data.stratify": (CLASSES, {"data__val_set_size": 8}, True, False),
    "data.group_by": ("causal_lm", {"data__val_set_size": 4}, None, "completion"),
    "data.max_length": ("causal_lm", {}, 48, 6),
    "data.overflow": ("causal_lm", {"data__max_length": 6}, "truncate", "drop"),
    "data.packing": ("causal_lm", {}, False, True),
    "data.train_on": ("causal_lm", {}, "completions", "all"),
    "data.chat_template": ("causal_lm", {}, None, "chatml"),
    "data.streaming": ("causal_lm", {}, False, True),
    "data.max_rows": ("causal_lm", {}, None, 5),
    "data.max_eval_rows": ("causal_lm", {"data__val_set_size": 4}, None, 2),
    "training.learning_rate": ("causal_lm", {}, 1e-3, 1e-2),
    "training.head_learning_rate": (CLASSES, {}, None, 0.5),
    "training.lr_groups": ("causal_lm", {}, {}, {"lora_B": 0.5}),
    "training.train_head": (CLASSES, {}, True, False),
    "training.num_train_epochs": ("causal_lm", {"training__max_steps": None}, 1.0, 2.0),
    "training.max_steps": ("causal_lm", {}, 6, 7),
    "training.per_device_train_batch_size": ("causal_lm", {}, 4, 2),
    "training.per_device_eval_batch_size": ("causal_lm", {}, 4, 2),
    "training.gradient_accumulation_steps": ("causal_lm", {}, 1, 2),
    "training.max_tokens_per_micro_batch": ("causal_lm", {}, None, 16),
    "training.optim": ("causal_lm", {}, "adamw_torch", "sgd"),
    "training.weight_decay": ("causal_lm", {}, 0.0, 0.1),
    "training.adam_beta1": ("causal_lm", {}, 0.9, 0.8),
    "training.adam_beta2": ("causal_lm", {}, 0.9, 0.8),
    "training.adam_epsilon": ("causal_lm", {}, 1e-8, 1e-6),
    "training.lr_scheduler_type": ("causal_lm", {}, "constant", "linear"),
    "training.warmup_steps": ("causal_lm", {"training__lr_scheduler_type": "linear"}, 0, 2),
    "training.warmup_ratio": ("causal_lm", {"training__lr_scheduler_type": "linear"}, 0.0, 0.5),
    "training.bf16": ("causal_lm", {}, False, True),
    "training.gradient_checkpointing": ("causal_lm", {}, False, True),
    "training.train_sampling_strategy": ("causal_lm", {}, "random", "sequential"),
    "training.eval_strategy": ("causal_lm", {"data__val_set_size": 4}, "auto", "no"),
    "training.eval_steps": ("causal_lm", {"data__val_set_size": 4}, None, 2),
    "training.save_strategy": ("causal_lm", {}, "auto", "no"),
    "training.save_steps": ("causal_lm", {}, None, 2),
    "training.metrics": ("causal_lm", {"data__val_set_size": 4}, [], ["exact_match"]),
    "training.metric_for_best_model": (CLASSES, {"data__val_set_size": 4}, "eval_loss", "eval_mcc"),
    "training.eval_generate": ("causal_lm", {"data__val_set_size": 4}, 0, 2),
    "training.fast_paths.head_loss": ("causal_lm", {}, True, False),
    "training.fast_paths.padding_free": ("causal_lm", {}, True, False),
}

TRAINED: dict[str, Example] = {
    "training.max_grad_norm": ("causal_lm", {}, 1.0, 1e-3),
    "training.label_smoothing_factor": ("causal_lm", {}, 0.0, 0.3),
    "training.class_weights": (CLASSES, {}, None, [1.0, 2.0, 5.0]),
    "training.neftune_noise_alpha": ("causal_lm", {}, None, 50.0),
    "training.save_total_limit": ("causal_lm", {"training__save_steps": 1}, 2, 4),
    "training.logging_steps": ("causal_lm", {}, 1, 3),
    "training.greater_is_better": (CLASSES, EVALUATED, False, True),
    "training.early_stopping_patience": ("causal_lm", {**EVALUATED, "training__greater_is_better": True}, None, 1),
    "training.early_stopping_threshold": (
        "causal_lm", {**EVALUATED, "training__early_stopping_patience": 1}, 0.0, 100.0,
    ),
    "training.max_new_tokens": (
        "causal_lm", {"data__val_set_size": 4, "training__eval_generate": 1}, 1, 3,
    ),
    "training.report_to": ("causal_lm", {}, [], ["tensorboard"]),
    "training.callbacks": ("causal_lm", {}, [], ["heard"]),
    "data.on_error": ("causal_lm", {"data__path": "spoilt"}, "skip", "error"),
    "model.attn_implementation": ("causal_lm", {}, "eager", "sdpa"),
    "training.push_to_hub": ("causal_lm", {}, None, "not/a/name"),
    "training.fp16": ("causal_lm", {}, False, True),
    "training.device": ("causal_lm", {}, "cpu", "cuda"),
}  # fmt: skip
"""Keys whose effect shows only when a run is made: in its losses, files, notes or refusal."""

ELSEWHERE = {
    "test_preflight.py": "model.revision",
    "models/load/test_loading.py": "model.name_or_path model.num_labels",
    "models/load/test_remote_code.py": "model.trust_remote_code",
    "models/structure/test_unknown_family.py": "model.anatomy",
    "models/load/test_quantization.py": "model.load_in_4bit model.load_in_8bit model.bnb_4bit_quant_type "
    "model.bnb_4bit_use_double_quant model.bnb_4bit_compute_dtype model.min_quantized_share",
    "data/read/test_splits.py": "data.split",
    "data/rows/test_row_selection.py": "data.datasets data.path",
    "data/encode/test_causal.py": "data.max_fully_masked",
    "data/rows/test_split_rules.py": "data.split_rule",
    "distributed/test_strategy.py": "distributed.strategy distributed.cpu_offload distributed.reshard_after_forward",
    "distributed/test_hang.py": "distributed.timeout",
    "data/test_unused.py": "data.chat_template_kwargs",
    "data/store/test_cache.py": "data.cache_dir data.num_proc",
    "training/test_step_batches.py": "training.dataloader_num_workers",
    "training/test_process_state.py": "training.fast_paths.allocator",
    "training/test_step_engine.py": "training.tf32",
    "training/test_options.py": "training.eval_on_start",
    "training/start/test_live_reference.py": "training.reference",
    "training/speed/test_compile.py": "training.torch_compile",
    "training/speed/test_computing.py": "training.fast_paths.attention training.fast_paths.dropout "
    "training.fast_paths.compute_weights",
    "training/speed/test_last_block.py": "training.fast_paths.last_block",
    "inference/test_continuous_batch.py": "training.fast_paths.continuous_batching",
    "training/speed/test_sharing_prompts.py": "training.fast_paths.shared_prompts",
    "layers/parts/test_lowrank.py": "training.fast_paths.lowrank",
    "layers/cpu/test_wide_products.py": "training.fast_paths.wide_products",
    "tasks/test_preference_losses.py": "training.loss_type training.beta training.label_smoothing training.simpo_gamma "
    "training.sft_weight",
    "tasks/test_kto.py": "training.desirable_weight training.undesirable_weight",
    "recipes.py": "task output_dir",
}
"""Keys whose effect is speed, or needs another base or other files: the test file that shows it, and names the key."""

UNSEEN = {"data.config": "names a part of a data set of the hub"}
"""Keys whose effect nothing shows on a CPU without a network, and why; that they are read is tested."""


def test_each_key_has_an_example_or_a_reason() -> None:
    blocks = {"model.": ModelSpec, "data.": DataSpec, "training.": TrainingSpec}
    blocks |= {"training.fast_paths.": FastPathsSpec, "distributed.": DistributedSpec}
    keys = {f"{prefix}{name}" for prefix, block in blocks.items() for name in block.model_fields}
    keys |= set(Recipe.model_fields)
    keys -= {"model", "data", "training", "method", "distributed", "training.fast_paths"}  # blocks
    listed = [*EXAMPLES, *TRAINED, *UNSEEN, *(key for text in ELSEWHERE.values() for key in text.split())]
    assert sorted(listed) == sorted(keys)
    assert set(DataSource.model_fields) - set(DataSpec.model_fields) == {"name", "weight"}  # tests of the data


@pytest.mark.parametrize(("file", "keys"), ELSEWHERE.items())
def test_a_file_named_as_showing_a_key_names_it(file: str, keys: str) -> None:
    text = (Path(__file__).parent.parent / file).read_text(encoding="utf-8")
    assert [key for key in keys.split() if not re.search(rf"(\b|__){key.rpartition('.')[2]}\b", text)] == []


def _built(loaded: LoadedRecipe, path: Path) -> Mapping[str, str]:
    """Return what a session is built from, as text that can be compared; the recipe itself is left out."""
    reporter = Recorder()
    session = build_session(loaded, World(torch.device("cpu")), RunDirectory(path), reporter, TrainState())
    digest = hashlib.sha256()
    for parameter in session.attachment.trainable_parameters().values():
        digest.update(parameter.detach().float().numpy().tobytes())
    shown = {**header(session), "output_dir": "", "data": "", "precision": str(session.precision.compute)}
    shares = [session.batches.read(index) for index in range(2)]
    paths = session.computing.fast_paths
    found = {
        "plan": session.plan,
        "header": {**shown, "rows": str(shown["rows"]).replace("; prepared before", "")},
        "steps": [[[(row.input_ids.tolist(), str(row.labels)) for row in one.rows] for one in step] for step in shares],
        "validation": {name: [row.row for row in rows] for name, rows in session.validation.items()},
        "groups": [{**group, "params": len(group["params"])} for group in session.optimizer.param_groups],
        "rates": [session.rate_factor(index) for index in range(6)],
        "evaluator": (session.evaluator.metrics, session.evaluator.batch_size, session.evaluator.samples),
        "base": (session.base.dtype, len(session.tokenizer), session.state.recomputes),
        "paths": (paths.by_document, getattr(session.task, "route", None) is None),
        "weights": digest.hexdigest(),
    }  # fmt: skip
    return {name: str(value) for name, value in found.items()}


@pytest.mark.parametrize(("family", "task"), [("llama", "causal_lm"), ("bert", CLASSES)])
def test_the_same_recipe_gives_the_same(recipe, tmp_path: Path, family: str, task: str) -> None:
    found = [_built(recipe(family, task, data__val_set_size=4), tmp_path / str(number)) for number in range(2)]
    assert found[0] == found[1]


def _trained(loaded: LoadedRecipe, path: Path) -> Mapping[str, str]:
    """Return what a run showed, wrote and kept, as text that can be compared."""
    reporter = Recorder()
    summary = train(loaded, reporter=reporter)
    run = Path(str(loaded.recipe.output_dir))
    found = {
        "losses": reporter.losses,
        "gradients": [record.grad_norm for record in reporter.steps],
        "kept": (summary.steps, summary.best_step, summary.data.get("rows")),
        "header": reporter.facts.get("attention"),
        "files": sorted(str(file.parent.relative_to(run)) for file in run.rglob("*") if file.is_file()),
        "samples": (run / "samples.jsonl").read_text() if (run / "samples.jsonl").exists() else "",
    }
    return {name: str(value) for name, value in found.items()}


@pytest.mark.parametrize("key", [*EXAMPLES, *TRAINED])
def test_two_values_differ(recipe, tmp_path: Path, key: str) -> None:
    task, others, *values = EXAMPLES.get(key) or TRAINED[key]
    rows = chat_rows(16) if task == "causal_lm" else class_rows(24)
    for name, content in _files(rows).items():
        write_jsonl(tmp_path / f"{name}.jsonl", content)

    def placed(value: Any) -> Any:
        if isinstance(value, dict) and "path" in value:
            return {**value, "path": str(tmp_path / f"{value['path']}.jsonl")}
        return value

    found: list[Any] = []
    for number, value in enumerate(values):
        changes = {name: str(tmp_path / f"{other}.jsonl") if name == "data__path" else other
                   for name, other in others.items()}  # fmt: skip
        changes[key.replace(".", "__")] = placed(value)
        observe = _built if key in EXAMPLES else _trained
        try:
            loaded = recipe("llama" if task == "causal_lm" else "bert", task, rows, name=f"run{number}", **changes)
            found.append(observe(loaded, tmp_path / str(number)))
        except UserError as error:  # a refusal is a difference, too: the key was read
            found.append(str(error))
    assert found[0] != found[1]
    assert not isinstance(found[0], str), found[0]


def _files(rows: list[dict[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """Return file name -> rows that examples name."""
    return {
        "rows": [*rows],
        "numbers": [{**row, "label": number % 3} for number, row in enumerate(rows)],
        "spoilt": [*rows[:6], {"prompt": None, "completion": 3}, *rows[6:]],
    }
