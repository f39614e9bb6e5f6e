"""Unknown keys: other tools' names, keys of other methods and other blocks, near misses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import BaseModel

from peftcli.errors import Problem
from peftcli.names import NAMES
from peftcli.protocol.registry import registry
from peftcli.recipe.aliases.all_aliases import ALIASES, METHOD_ALIASES, TASK_ALIASES
from peftcli.recipe.schema import DataSpec, DistributedSpec, ModelSpec, Recipe, TrainingSpec
from tests.recipe.conftest import GOOD

Problems = Callable[..., list[Problem]]


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("base_model", "`model.name_or_path`"),
        ("method.lora_rank", "`method.r`"),
        ("method.rank", "`method.r`"),
        ("lora_r", "`method.r`"),
        ("training.epochs", "`training.num_train_epochs`"),
        ("num_epochs", "`training.num_train_epochs`"),
        ("sequence_len", "`data.max_length`"),
        ("data.cutoff_len", "`data.max_length`"),
        ("training.max_seq_length", "`data.max_length`"),
        ("training.micro_batch_size", "`training.per_device_train_batch_size`"),
        ("adapter", "`method.name`"),
        ("finetuning_type", "`method.name`"),
        ("training.lr", "`training.learning_rate`"),
        ("training.resume_from_checkpoint", "--resume"),
        ("training.overwrite_output_dir", "--overwrite"),
        ("training.load_best_model_at_end", "the best evaluated adapter is kept"),
        ("deepspeed", "distributed.strategy: fsdp divides the base"),
        ("fsdp", "`distributed.strategy`"),
        ("training.num_processes", "command line"),
        ("training.cpu_offload", "`distributed.cpu_offload`"),
        ("distributed.fsdp_offload_params", "`distributed.cpu_offload`"),
        ("distributed.stratgy", "did you mean `strategy`?"),
        ("learning_rate", "`training.learning_rate`"),
        ("training.r", "`method.r`"),
        ("method.learning_rate", "`training.learning_rate`"),
        ("model.task", "at the top level"),
        ("method.target_r", "`target_r` is a key of budget; low_rank has: name"),
        ("training.learning_rat", "did you mean `learning_rate`?"),
        ("method.lora_dropot", "did you mean `lora_dropout`?"),
        ("data.max_lenght", "did you mean `max_length`?"),
        ("training.max_lenght", "did you mean `data.max_length`?"),
        ("trainnig", "did you mean `training`?"),
        ("training.Learning_Rate", "did you mean `learning_rate`?"),
        ("training.learning-rate", "did you mean `learning_rate`?"),
        ("training.zzz", "the keys of `training` are: learning_rate"),
        ("zzz", "the keys of a recipe are: model, task, data, method, training"),
        ("method.bottleneck_dim", "the keys of `method` are: name"),
    ],
)
def test_every_unknown_key_is_answered(problems: Problems, key: str, answer: str) -> None:
    (problem,) = problems(GOOD, f"{key}=3")
    assert problem.key == key
    assert answer in str(problem.suggestion), str(problem)


def test_dotted_keys_in_the_file(problems: Problems) -> None:
    (problem,) = problems(GOOD + "training.max_steps: 5\n")
    assert "write `max_steps:` under `training:`" in str(problem.suggestion)


def test_a_source_of_several_has_its_own_format(problems: Problems) -> None:
    text = GOOD.replace("  path: train.jsonl", "  datasets:\n    - path: a.jsonl\n      type: alpaca")
    (problem,) = problems(text)
    assert "`data.datasets.0.format`" in str(problem.suggestion)


AXOLOTL = (
    "base_model model_type tokenizer_type load_in_8bit load_in_4bit strict chat_template datasets val_set_size "
    "dataset_prepared_path adapter lora_model_dir sequence_len sample_packing eval_sample_packing "
    "pad_to_sequence_len lora_r lora_alpha lora_dropout lora_target_modules lora_target_linear "
    "lora_fan_in_fan_out wandb_project wandb_entity wandb_watch wandb_name wandb_log_model "
    "gradient_accumulation_steps micro_batch_size num_epochs optimizer lr_scheduler learning_rate "
    "train_on_inputs group_by_length bf16 fp16 tf32 gradient_checkpointing early_stopping_patience "
    "resume_from_checkpoint local_rank logging_steps xformers_attention flash_attention "
    "loss_watchdog_threshold warmup_steps warmup_ratio evals_per_epoch saves_per_epoch eval_table_size debug "
    "deepspeed weight_decay fsdp fsdp_config special_tokens "
)
LLAMA_FACTORY = (
    "model_name_or_path trust_remote_code stage do_train finetuning_type lora_rank lora_target dataset "
    "template cutoff_len max_samples overwrite_cache preprocessing_num_workers dataloader_num_workers "
    "logging_steps save_steps plot_loss overwrite_output_dir save_only_model report_to "
    "per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type "
    "warmup_ratio bf16 ddp_timeout resume_from_checkpoint eval_dataset val_size per_device_eval_batch_size "
    "eval_strategy eval_steps quantization_bit flash_attn neat_packing "
)


@pytest.mark.parametrize("name", sorted({*AXOLOTL.split(), *LLAMA_FACTORY.split()}))
def test_keys_of_the_example_recipes_of_other_tools_are_all_known(problems: Problems, name: str) -> None:
    (problem,) = problems(GOOD, f"{name}=1")
    assert "the keys of a recipe are" not in str(problem.suggestion)


def test_aliases_lead_to_keys_that_exist() -> None:
    keys = set(Recipe.model_fields)
    blocks: dict[str, type[BaseModel]] = {"model": ModelSpec, "data": DataSpec, "training": TrainingSpec}
    blocks["distributed"] = DistributedSpec
    keys |= {f"{head}.{name}" for head, block in blocks.items() for name in block.model_fields}
    models = [registry.params_model(name) for name in registry.names()]
    keys |= {f"method.{name}" for model in models if model is not None for name in model.model_fields}
    assert {alias.ours for alias in ALIASES.values() if alias.ours is not None} - keys == set()


def test_aliases_are_written_as_they_are_looked_up() -> None:
    assert [name for name in ALIASES if name != name.lower().replace("-", "_")] == []
    assert [name for name, alias in ALIASES.items() if alias.ours is None and not alias.note] == []
    assert set(TASK_ALIASES.values()) <= set(NAMES.tasks)
    assert [name for name in METHOD_ALIASES if name in registry.names()] == []
