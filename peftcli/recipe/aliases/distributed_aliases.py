"""Names that other tools use for the keys of `distributed`, and for what the command line sets."""

from __future__ import annotations

from peftcli.recipe.aliases.alias import AXOLOTL, LITGPT, TORCHTUNE, TRANSFORMERS, Alias

_LAUNCH = "not a recipe key: the number of processes is set on the command line (--num-processes, accelerate launch)"
_DEEPSPEED = "DeepSpeed is not used: distributed.strategy: fsdp divides the base among the processes"
_BLOCKS = "not needed: the blocks are those of the model's family"
_WHOLE = "not needed: what is saved is always whole"
_ACCELERATE = "accelerate"

DISTRIBUTED = {
    "deepspeed": Alias(f"{TRANSFORMERS}, {AXOLOTL}", None, _DEEPSPEED),
    "deepspeed_config": Alias(_ACCELERATE, None, _DEEPSPEED),
    "zero_stage": Alias("deepspeed", None, _DEEPSPEED),
    "zero3_init_flag": Alias("deepspeed", None, _DEEPSPEED),
    "fsdp": Alias(f"{TRANSFORMERS}, {AXOLOTL}", "distributed.strategy", "write fsdp"),
    "use_fsdp": Alias("other tools", "distributed.strategy", "write fsdp"),
    "fsdp_config": Alias(f"{TRANSFORMERS}, {AXOLOTL}, accelerate", "distributed", "with strategy: fsdp"),
    "distributed_type": Alias(_ACCELERATE, "distributed.strategy", "FSDP is fsdp, MULTI_GPU is ddp"),
    "distributed_strategy": Alias("other tools", "distributed.strategy"),
    "parallel_strategy": Alias("other tools", "distributed.strategy"),
    "fsdp_version": Alias(f"{AXOLOTL}, accelerate", None, "not needed: it is FSDP2, torch's fully_shard"),
    "fsdp_sharding_strategy": Alias(
        _ACCELERATE, "distributed.reshard_after_forward", "FULL_SHARD is true, SHARD_GRAD_OP is false"
    ),
    "sharding_strategy": Alias(
        _ACCELERATE, "distributed.reshard_after_forward", "FULL_SHARD is true, SHARD_GRAD_OP is false"
    ),
    "fsdp_reshard_after_forward": Alias(f"{TORCHTUNE}, accelerate", "distributed.reshard_after_forward"),
    "fsdp_offload_params": Alias(_ACCELERATE, "distributed.cpu_offload"),
    "offload_params": Alias(AXOLOTL, "distributed.cpu_offload"),
    "fsdp_cpu_offload": Alias(TORCHTUNE, "distributed.cpu_offload"),
    "offload_to_cpu": Alias("other tools", "distributed.cpu_offload"),
    "fsdp_auto_wrap_policy": Alias(_ACCELERATE, None, _BLOCKS),
    "auto_wrap_policy": Alias(_ACCELERATE, None, _BLOCKS),
    "fsdp_transformer_layer_cls_to_wrap": Alias(f"{TRANSFORMERS}, {AXOLOTL}, accelerate", None, _BLOCKS),
    "transformer_layer_cls_to_wrap": Alias(AXOLOTL, None, _BLOCKS),
    "fsdp_min_num_params": Alias(_ACCELERATE, None, _BLOCKS),
    "custom_sharded_layers": Alias(TORCHTUNE, None, _BLOCKS),
    "fsdp_state_dict_type": Alias(_ACCELERATE, None, _WHOLE),
    "state_dict_type": Alias(_ACCELERATE, None, _WHOLE),
    "fsdp_use_orig_params": Alias(_ACCELERATE, None, "not needed: trained tensors stay whole beside a sharded base"),
    "fsdp_activation_checkpointing": Alias(_ACCELERATE, "training.gradient_checkpointing"),
    "ddp_find_unused_parameters": Alias(TRANSFORMERS, None, "not needed: a tensor without a gradient counts as zero"),
    "num_processes": Alias(_ACCELERATE, None, _LAUNCH),
    "num_machines": Alias(_ACCELERATE, None, _LAUNCH),
    "num_nodes": Alias(LITGPT, None, _LAUNCH),
    "nproc_per_node": Alias("torchrun", None, _LAUNCH),
    "devices": Alias(LITGPT, None, _LAUNCH),
    "gpus": Alias("other tools", None, _LAUNCH),
    "local_rank": Alias(f"{TRANSFORMERS}, {AXOLOTL}", None, _LAUNCH),
}
