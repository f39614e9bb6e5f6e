"""Keys that only axolotl or LLaMA-Factory have, and that no recipe needs."""

from __future__ import annotations

from peftcli.recipe.aliases.alias import AXOLOTL, LLAMA_FACTORY, Alias

_KERNELS = "not needed: other libraries are not patched; training.fast_paths has this project's own"
_PROCESSES = "not needed: processes, their communication and their numbers follow from the command line"
_TOKENIZER = "not needed: the model's own tokenizer is used as it is"
_DTYPE = "every weight of the base has one dtype (model.dtype), and losses are computed in float32"
_LOSS = "not needed: the loss is computed in chunks at learnt positions only"
_MEDIA = "text only"
_SHARDS = "not needed: weights are read once, and each process keeps its share"
_ANSWERS = "not a recipe key: an option of peft predict and peft chat"
_BEAMS = "not a recipe key: an option of peft predict"
_HUB = "log in with the hub's own tool, or set HF_TOKEN and HF_HOME"

ONLY_THERE = {
    **{name: Alias(AXOLOTL, None, _KERNELS) for name in (
        "plugins", "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm",
        "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "flash_attn_cross_entropy", "flash_attn_rms_norm",
        "flash_attn_fuse_qkv", "flash_attn_fuse_mlp", "unsloth_lora_mlp", "unsloth_lora_qkv", "unsloth_lora_o",
    )},
    **{name: Alias(AXOLOTL, None, _LOSS) for name in (
        "liger_fused_linear_cross_entropy", "liger_cross_entropy", "unsloth_cross_entropy_loss", "cut_cross_entropy",
    )},
    **{name: Alias(LLAMA_FACTORY, None, _KERNELS) for name in (
        "enable_liger_kernel", "use_unsloth", "use_unsloth_gc",
    )},
    **{name: Alias(AXOLOTL, None, _PROCESSES) for name in (
        "world_size", "ddp", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "max_memory", "gpu_memory_limit",
    )},
    **{name: Alias(AXOLOTL, None, _TOKENIZER) for name in (
        "tokenizer_use_fast", "tokenizer_legacy", "resize_token_embeddings_to_32x", "tokenizer_use_mistral_common",
    )},
    **{name: Alias(LLAMA_FACTORY, None, _TOKENIZER) for name in (
        "use_fast_tokenizer", "resize_vocab", "split_special_tokens",
    )},
    **{name: Alias(LLAMA_FACTORY, None, _DTYPE) for name in ("upcast_layernorm", "upcast_lmhead_output")},
    **{name: Alias(LLAMA_FACTORY, None, _MEDIA) for name in (
        "image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels", "media_dir",
        "freeze_vision_tower", "freeze_multi_modal_projector",
    )},
    **{name: Alias(LLAMA_FACTORY, None, _ANSWERS) for name in ("temperature", "top_p", "top_k")},
    "num_beams": Alias(LLAMA_FACTORY, None, _BEAMS),
    **{name: Alias(LLAMA_FACTORY, None, _HUB) for name in ("hf_hub_token", "ms_hub_token")},
    **{name: Alias(AXOLOTL, None, _SHARDS) for name in (
        "fsdp_cpu_ram_efficient_loading", "cpu_ram_efficient_loading", "fsdp_sync_module_states",
        "fsdp_limit_all_gathers", "limit_all_gathers", "fsdp_backward_prefetch",
    )},
    "eot_tokens": Alias(AXOLOTL, None, "not needed: the token that ends a turn is found in the template, and learnt"),
    "processor_type": Alias(AXOLOTL, None, _MEDIA),
    "skip_prepare_dataset": Alias(AXOLOTL, None, _MEDIA),
    "use_kernels": Alias(AXOLOTL, None, _KERNELS),
    "use_v1_kernels": Alias(LLAMA_FACTORY, None, _KERNELS),
    "hf_use_auth_token": Alias(AXOLOTL, None, _HUB),
    "hub_strategy": Alias(AXOLOTL, None, "the adapter is uploaded once, at the end"),
    "quantization_method": Alias(LLAMA_FACTORY, None, "bitsandbytes only", asks=True),
    "dataset_shards": Alias(AXOLOTL, None, "a part of the rows: data.max_rows takes fewer", asks=True),
    "shuffle_merged_datasets": Alias(AXOLOTL, None, "not needed: rows are shuffled by train_sampling_strategy"),
    "sample_packing_eff_est": Alias(AXOLOTL, None, "not needed: packed rows are counted"),
    "sample_packing_bin_size": Alias(AXOLOTL, None, "not needed: data.packing has no options"),
    "sample_packing_group_size": Alias(AXOLOTL, None, "not needed: data.packing has no options"),
    "total_num_tokens": Alias(AXOLOTL, None, "not needed: tokens are counted"),
    "eval_max_new_tokens": Alias(AXOLOTL, "training.max_new_tokens"),
    "ignore_pad_token_for_loss": Alias(LLAMA_FACTORY, None, "not needed: padding never counts"),
    "include_num_input_tokens_seen": Alias(LLAMA_FACTORY, None, "not needed: tokens are counted"),
    "buffer_size": Alias(LLAMA_FACTORY, None, "not needed: data.streaming draws rows by hash"),
    "disable_gradient_checkpointing": Alias(LLAMA_FACTORY, "training.gradient_checkpointing", "true is false here"),
    "create_new_adapter": Alias(
        LLAMA_FACTORY, None, "an adapter is continued (method.init_from), or a new one begun", asks=True
    ),
    "enable_thinking": Alias(LLAMA_FACTORY, "data.chat_template_kwargs", "{enable_thinking: true}"),
    "print_param_status": Alias(LLAMA_FACTORY, None, "not a recipe key: peft count-params"),
    "compute_accuracy": Alias(LLAMA_FACTORY, None, "training.metrics names metrics", asks=True),
}  # fmt: skip
