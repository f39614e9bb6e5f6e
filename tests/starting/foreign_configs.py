"""Configurations with the keys of axolotl's and LLaMA-Factory's public examples, on files that a test writes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.recipes import write_jsonl

QLORA_AXOLOTL = """\
base_model: {model}
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
load_in_4bit: true
strict: false

datasets:
  - path: alpaca.jsonl
    ds_type: json
    type: alpaca
dataset_prepared_path:
val_set_size: 0.25
output_dir: outputs/qlora

adapter: qlora
lora_model_dir:
sequence_len: 64
sample_packing: true
pad_to_sequence_len: true
lora_r: 4
lora_alpha: 8
lora_dropout: 0.05
lora_target_linear: true

wandb_project:
wandb_name:

gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
bf16: auto
tf32: false
gradient_checkpointing: true
logging_steps: 1
flash_attention: true
warmup_steps: 1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
deepspeed: configs/zero2.json
liger_rms_norm: true
special_tokens:
  pad_token: "<|end_of_text|>"
"""

CHAT_AXOLOTL = """\
base_model: {model}
chat_template: chatml
datasets:
  - path: json
    data_files: talks.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
    roles_to_train: [assistant]
  - path: alpaca.jsonl
    type:
      field_instruction: instruction
      field_output: output
      format: "[INST] {{instruction}} [/INST]"
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_modules: [q_proj, v_proj]
sequence_len: 96
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_torch_fused
learning_rate: 0.0003
fsdp:
  - full_shard
  - auto_wrap
fsdp_config:
  fsdp_offload_params: false
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
output_dir: outputs/chat
"""

LORA_LLAMA_FACTORY = """\
### model
model_name_or_path: {model}
trust_remote_code: false

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: all

### dataset
dataset: tasks,talks
template: chatml
cutoff_len: 96
max_samples: 8
overwrite_cache: true
preprocessing_num_workers: 1

### output
output_dir: saves/lora
logging_steps: 1
save_steps: 500
plot_loss: true
overwrite_output_dir: true
report_to: none

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 1
learning_rate: 1.0e-4
num_train_epochs: 1.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: false
ddp_timeout: 180000000
"""

QLORA_LLAMA_FACTORY = """\
model_name_or_path: {model}
quantization_bit: 4
quantization_method: bnb
stage: sft
do_train: true
finetuning_type: lora
lora_target: q_proj,v_proj
dataset: talks
dataset_dir: .
template: qwen3
cutoff_len: 96
output_dir: saves/qlora
per_device_train_batch_size: 2
learning_rate: 1.0e-4
num_train_epochs: 1.0
val_size: 0.25
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 2
flash_attn: fa2
enable_liger_kernel: true
"""

EVERY = {
    "qlora-axolotl": QLORA_AXOLOTL,
    "chat-axolotl": CHAT_AXOLOTL,
    "lora-llama-factory": LORA_LLAMA_FACTORY,
    "qlora-llama-factory": QLORA_LLAMA_FACTORY,
}


def write_config(folder: Path, text: str, model: str = "NousResearch/Meta-Llama-3-8B") -> Path:
    """Write a configuration into the current directory `folder`, with the files that it names."""
    tasks = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("cat", "dog", "red", "blue")] * 3
    talks = [
        {"conversations": [{"from": "human", "value": f"is it {word}"}, {"from": "gpt", "value": word}]}
        for word in ("cat", "dog", "red", "blue")
    ] * 3
    write_jsonl(folder / "alpaca.jsonl", tasks)
    write_jsonl(folder / "talks.jsonl", talks)
    info = {
        "tasks": {"file_name": "alpaca.jsonl", "columns": {"prompt": "instruction", "response": "output"}},
        "talks": {"file_name": "talks.jsonl", "formatting": "sharegpt", "columns": {"messages": "conversations"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    file = folder / "config.yaml"
    file.write_text(text.format(model=model))
    return file
