"""The settings of a config of Accelerate, and what each value means for a recipe.

`accelerate launch` hands its config to the processes in environment variables: see `accelerate/utils/launch.py`, of
version 1.15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ANY = "*"
"""Stands for every other value of a setting."""


@dataclass(frozen=True)
class Change:
    """A value that means a value of the recipe.

    Args:
        value: of the recipe's key, as it is written in YAML; None takes the config's own.
    """

    key: str
    value: str | None = None


@dataclass(frozen=True)
class Refused:
    """A value that cannot be done here."""

    remedy: str


@dataclass(frozen=True)
class Idle:
    """A value that changes nothing here, which is said."""

    reason: str


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        name: in the config's file.
        variable: in which it comes.
        values: what each value means, in small letters; one that is not listed and has no `ANY` changes nothing.
        within: the settings of which it is a part count only where this variable is set.
    """

    name: str
    variable: str
    values: Mapping[str, Change | Refused | Idle]
    within: str | None = None


NOTHING = Idle("")
"""A value that changes nothing here, and needs no word."""

_FSDP, _DYNAMO = "ACCELERATE_USE_FSDP", "ACCELERATE_DYNAMO_BACKEND"
_PARALLEL, _DEEPSPEED = "ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_USE_DEEPSPEED"
_SHARDS = "write distributed_type: FSDP, which divides the base among the processes, or MULTI_GPU"
_ONE_WAY = Refused("set it to 1: the processes share rows, and with FSDP the base, but no layer or sequence")
_BLOCKS = Idle("each block of the model is divided on its own, as the model's own description says")
_WHOLE = Idle("checkpoints hold whole tensors")
_OWN_FSDP = Idle("FSDP2 does it in its own way")

SETTINGS = (
    Setting("distributed_type: DEEPSPEED", _DEEPSPEED, {"true": Refused(_SHARDS)}),
    Setting("distributed_type: MEGATRON_LM", "ACCELERATE_USE_MEGATRON_LM", {"true": Refused(_SHARDS)}),
    Setting("tpu", "ACCELERATE_IN_TPU_POD", {"true": Refused("use CUDA devices or CPUs")}),
    Setting(
        "distributed_type",
        "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
        {"false": Idle("one process"), ANY: Refused("write distributed_type: NO, and start torchrun in the job")},
        "ACCELERATE_USE_SAGEMAKER",
    ),
    Setting("use_cpu", "ACCELERATE_USE_CPU", {"true": Change("training.device", "cpu")}),
    # "no" is also what Accelerate says where nobody chose
    Setting(
        "mixed_precision",
        "ACCELERATE_MIXED_PRECISION",
        {
            "bf16": Change("training.bf16", "true"),
            "fp16": Change("training.fp16", "true"),
            "fp8": Refused("write mixed_precision: bf16; to hold the base in 8 or 4 bits, model.load_in_8bit or _4bit"),
        },
    ),
    Setting(
        "gradient_accumulation_steps",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        {"auto": Idle("the recipe's number counts"), ANY: Change("training.gradient_accumulation_steps")},
    ),
    Setting(
        "dynamo_backend",
        _DYNAMO,
        {
            "false": NOTHING,
            "inductor": Change("training.torch_compile", "true"),
            ANY: Refused("write dynamo_backend: INDUCTOR or NO"),
        },
    ),
    Setting("dynamo_mode", "ACCELERATE_DYNAMO_MODE", {"default": NOTHING, ANY: Refused("leave it out")}, _DYNAMO),
    Setting("dynamo_use_fullgraph", "ACCELERATE_DYNAMO_USE_FULLGRAPH", {"true": Refused("write false")}, _DYNAMO),
    Setting("dynamo_use_dynamic", "ACCELERATE_DYNAMO_USE_DYNAMIC", {"true": Idle("sizes decide")}, _DYNAMO),
    Setting("distributed_type: FSDP", _FSDP, {"true": Change("distributed.strategy", "fsdp")}),
    Setting("fsdp_version", "FSDP_VERSION", {"1": Idle("FSDP2 divides the base, to the same result")}, _FSDP),
    Setting(
        "fsdp_sharding_strategy",
        "FSDP_SHARDING_STRATEGY",
        {
            "shard_grad_op": Change("distributed.reshard_after_forward", "false"),
            "2": Change("distributed.reshard_after_forward", "false"),
            **dict.fromkeys(
                ("no_shard", "3", "hybrid_shard", "4", "hybrid_shard_zero2", "5"),
                Refused(
                    "write FULL_SHARD or SHARD_GRAD_OP; for a whole base in each process, distributed_type: MULTI_GPU"
                ),
            ),
        },
        _FSDP,
    ),
    Setting(
        "fsdp_reshard_after_forward",
        "FSDP_RESHARD_AFTER_FORWARD",
        {
            "false": Change("distributed.reshard_after_forward", "false"),
            "shard_grad_op": Change("distributed.reshard_after_forward", "false"),
            **dict.fromkeys(("no_shard", "hybrid_shard", "hybrid_shard_zero2"), Refused("write true or false")),
        },
        _FSDP,
    ),
    Setting("fsdp_offload_params", "FSDP_OFFLOAD_PARAMS", {"true": Change("distributed.cpu_offload", "true")}, _FSDP),
    Setting(
        "fsdp_activation_checkpointing",
        "FSDP_ACTIVATION_CHECKPOINTING",
        {"true": Change("training.gradient_checkpointing", "true")},
        _FSDP,
    ),
    Setting(
        "fsdp_activation_checkpointing_offload",
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD",
        {"true": Refused("write false")},
        _FSDP,
    ),
    Setting("fsdp_auto_wrap_policy", "FSDP_AUTO_WRAP_POLICY", {"size_based_wrap": _BLOCKS, "no_wrap": _BLOCKS}, _FSDP),
    Setting("fsdp_transformer_layer_cls_to_wrap", "FSDP_TRANSFORMER_CLS_TO_WRAP", {ANY: _BLOCKS}, _FSDP),
    Setting(
        "fsdp_ignored_modules",
        "FSDP_IGNORED_MODULES",
        {ANY: Idle("what a method adds is whole in each process, and all of the base is divided")},
        _FSDP,
    ),
    Setting(
        "fsdp_state_dict_type",
        "FSDP_STATE_DICT_TYPE",
        {"sharded_state_dict": _WHOLE, "local_state_dict": _WHOLE},
        _FSDP,
    ),
    Setting("fsdp_forward_prefetch", "FSDP_FORWARD_PREFETCH", {"true": _OWN_FSDP}, _FSDP),
    Setting("fsdp_use_orig_params", "FSDP_USE_ORIG_PARAMS", {"false": _OWN_FSDP}, _FSDP),
    Setting(
        "parallelism_config_dp_replicate_size",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE",
        {"1": NOTHING, ANY: _ONE_WAY},
        _PARALLEL,
    ),
    Setting("parallelism_config_tp_size", "PARALLELISM_CONFIG_TP_SIZE", {"1": NOTHING, ANY: _ONE_WAY}, _PARALLEL),
    Setting("parallelism_config_cp_size", "PARALLELISM_CONFIG_CP_SIZE", {"1": NOTHING, ANY: _ONE_WAY}, _PARALLEL),
    Setting("parallelism_config_sp_size", "PARALLELISM_CONFIG_SP_SIZE", {"1": NOTHING, ANY: _ONE_WAY}, _PARALLEL),
)
"""Every setting that has a meaning for a run. Those of DeepSpeed, Megatron and fp8 come only with what is refused; how
many processes there are, and on which devices, is said by torch's own variables."""
