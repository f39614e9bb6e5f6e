"""What a config of Accelerate says is done, or refused by name. Accelerate itself turns the configs into variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.distributed.launch.accelerate_config import findings, for_recipe
from peftcli.distributed.launch.accelerate_settings import SETTINGS, Change, Refused
from peftcli.errors import UserError
from peftcli.training.run import train

FSDP = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_state_dict_type": "FULL_STATE_DICT"}


def said(tmp_path: Path, kind: str, **config: Any) -> dict[str, str]:
    """Return the variables that `accelerate launch` would set for a config of this kind."""
    from accelerate.commands import launch as command
    from accelerate.utils import launch

    words = {"distributed_type": kind, "num_processes": 2, "num_machines": 1, "main_process_port": 0, **config}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "mixed_precision": "no", **words}))
    parser = command.launch_command_parser()
    arguments, *_ = command._validate_launch_command(parser.parse_args(["--config_file", str(file), "script.py"]))
    if kind == "DEEPSPEED":
        arguments.deepspeed_fields_from_accelerate_config = ""
        return launch.prepare_deepspeed_cmd_env(arguments)[1]
    if kind in ("NO", "MULTI_CPU"):
        return launch.prepare_simple_launcher_cmd_env(arguments)[1]
    return launch.prepare_multi_gpu_env(arguments)


DONE = {
    "whole base": ("MULTI_GPU", {}, set()),
    "mixed precision": ("MULTI_GPU", {"mixed_precision": "bf16"}, {"training.bf16=true"}),
    "CPU": ("NO", {"use_cpu": True, "num_processes": 1}, {"training.device=cpu"}),
    "compiled": ("MULTI_GPU", {"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, {"training.torch_compile=true"}),
    "FSDP": ("FSDP", {"fsdp_config": FSDP}, {"distributed.strategy=fsdp"}),
    "every option of FSDP": (
        "FSDP",
        {
            "mixed_precision": "fp16",
            "fsdp_config": {
                **FSDP,
                "fsdp_offload_params": True,
                "fsdp_reshard_after_forward": False,
                "fsdp_activation_checkpointing": True,
            },
        },
        {
            "distributed.strategy=fsdp",
            "training.fp16=true",
            "distributed.cpu_offload=true",
            "distributed.reshard_after_forward=false",
            "training.gradient_checkpointing=true",
        },
    ),
    "FSDP1": (
        "FSDP",
        {"fsdp_config": {"fsdp_version": 1, "fsdp_sharding_strategy": "SHARD_GRAD_OP"}},
        {"distributed.strategy=fsdp", "distributed.reshard_after_forward=false"},
    ),
}


@pytest.mark.parametrize("case", DONE)
def test_a_config_decides_what_the_recipe_leaves_open(recipe, tmp_path: Path, case: str) -> None:
    kind, config, changes = DONE[case]
    found = for_recipe(recipe(training__bf16="auto", training__device="auto"), said(tmp_path, kind, **config))
    assert set(found.overrides) == changes
    assert ("Accelerate's config decides" in " ".join(found.notes)) == bool(changes)


def test_what_has_no_effect_is_named(recipe, tmp_path: Path) -> None:
    config = {"fsdp_version": 1, "fsdp_auto_wrap_policy": "SIZE_BASED_WRAP", "fsdp_use_orig_params": False}
    found = for_recipe(recipe(), said(tmp_path, "FSDP", fsdp_config=config))
    for name in ("fsdp_version: 1", "fsdp_auto_wrap_policy: SIZE_BASED_WRAP", "fsdp_use_orig_params"):
        assert name in found.notes[-1]


REFUSED = {
    "distributed_type: DEEPSPEED": ("DEEPSPEED", {"deepspeed_config": {"zero_stage": 3}}),
    "distributed_type: MEGATRON_LM": ("MEGATRON_LM", {"megatron_lm_config": {"megatron_lm_tp_degree": 2}}),
    "dynamo_backend: AOT_EAGER": ("MULTI_GPU", {"dynamo_config": {"dynamo_backend": "AOT_EAGER"}}),
    "dynamo_mode: reduce-overhead": (
        "MULTI_GPU",
        {"dynamo_config": {"dynamo_backend": "INDUCTOR", "dynamo_mode": "reduce-overhead"}},
    ),
    "fsdp_sharding_strategy: NO_SHARD": ("FSDP", {"fsdp_config": {"fsdp_sharding_strategy": "NO_SHARD"}}),
    "parallelism_config_tp_size: 2": (
        "FSDP",
        {"fsdp_config": FSDP, "parallelism_config": {"parallelism_config_tp_size": 2}},
    ),
    "several processes on CPUs": ("MULTI_CPU", {"use_cpu": True}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    recipe, tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    kind, config = REFUSED[words]
    with pytest.raises(UserError) as refused:
        for_recipe(recipe(), said(tmp_path, kind, **config))
    assert words in str(refused.value)
    assert all(problem.suggestion for problem in refused.value.problems)


CONTRADICTED = {
    "training.bf16": ({"training__bf16": False}, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    "training.gradient_accumulation_steps": (
        {"training__gradient_accumulation_steps": 4},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"},
    ),
    "distributed.strategy": ({"distributed__strategy": "ddp"}, {"ACCELERATE_USE_FSDP": "1"}),
}


@pytest.mark.parametrize("key", CONTRADICTED)
def test_a_recipe_that_says_otherwise_is_refused_at_its_line(recipe, key: str) -> None:
    values, variables = CONTRADICTED[key]
    loaded = recipe(**values)
    with pytest.raises(UserError) as refused:
        for_recipe(loaded, variables)
    (problem,) = refused.value.problems
    assert problem.key == key
    assert problem.line == loaded.lines[key]
    assert f"leave {key} out" in str(problem.suggestion)
    same = for_recipe(recipe(**dict.fromkeys(values, "auto")), {}) if "strategy" in key else for_recipe(loaded, {})
    assert not same.overrides


def test_all_that_is_wrong_is_said_at_once(recipe) -> None:
    variables = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "fp8"}
    with pytest.raises(UserError) as refused:
        for_recipe(recipe(), variables)
    assert len(refused.value.problems) == 2


def test_every_change_is_one_of_the_recipe(recipe) -> None:
    known = recipe().recipe.as_dict()
    for setting in SETTINGS:
        assert any(isinstance(one, Change | Refused) or one.reason for one in setting.values.values()), setting.name
        for meaning in setting.values.values():
            if isinstance(meaning, Change):
                block, key = meaning.key.split(".")
                assert key in known[block]
    assert findings({}) == []


def test_accelerate_launch_trains_as_its_config_says(recipe, tmp_path: Path) -> None:
    """Two processes on the CPU. In transformers' own FSDP mode the second would have no weights in the new head."""
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "fsdp_config": {**FSDP, "fsdp_reshard_after_forward": False, "fsdp_cpu_ram_efficient_loading": True},
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 2,
        "main_process_port": 0,
    }
    steps: dict[str, Any] = {"data__val_set_size": 5, "training__max_steps": 1}
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(config))
    loaded = recipe("bert", "sequence_classification", training__bf16="auto", **steps)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "-m", "peftcli"]
    done = subprocess.run([*launch, "train", loaded.path], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "Accelerate's config decides" in done.stderr
    run = Path(loaded.recipe.output_dir)
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    assert stored["training"]["bf16"] is True
    assert stored["distributed"]["strategy"] == "fsdp"
    assert stored["distributed"]["reshard_after_forward"] is False
    one = train(recipe("bert", "sequence_classification", name="one", training__bf16=True, **steps))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval_before"]["eval_loss"] == pytest.approx(one.eval_before["eval_loss"], rel=1e-2)
