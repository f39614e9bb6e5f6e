"""The peers, each described: how it is installed, how it is called, how its losses are read. Everything else is shared.

A word with `$` in a command or a file of `programs/` is filled in by the runner (`side_runs.words`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peftcli.process_state import KEPT_MEMORY

TORCH = "2.13.0"
"""CPU build; every environment has this one."""
OURS = "ours"
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Peer:
    """A library and its environment.

    Args:
        name: of the environment's folder.
        packages: what pip installs; none: this project's own environment serves.
        reported: distributions whose versions are in the table.
        removed: distributions that come with the packages and do not load beside a CPU build of torch.
        prepared: a command that is run once after the installation.
        borrows: whether its packages go with those of this project's environment: older ones of Hugging Face do not.
    """

    name: str
    packages: tuple[str, ...] = ()
    reported: tuple[str, ...] = ("transformers", "peft")
    removed: tuple[str, ...] = ()
    prepared: tuple[str, ...] = ()
    borrows: bool = True


@dataclass(frozen=True, eq=False)
class Side:
    """One way to train that is measured.

    Args:
        name: in the table and for `--sides`.
        peer: whose environment it runs in.
        says: what it is, for the table.
        command: its command line.
        work: what it trains; sides of the same work compare.
        files: templates of `programs/` and where they are written.
        values: words of its own for the command and the files.
        precision: its word for each dtype.
        environment: variables of its own.
        losses: a regular expression whose first group is a step's loss.
        log: the file that has them; none: what it prints.
    """

    name: str
    peer: str
    says: str
    command: tuple[str, ...]
    work: str = "decoder"
    files: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    precision: Mapping[str, str] = field(default_factory=lambda: {dtype: dtype for dtype in DTYPES})
    environment: Mapping[str, str] = field(default_factory=dict)
    losses: str = r"'loss': '?([0-9.]+(?:e-?[0-9]+)?)"
    log: str = ""


PEERS = (
    Peer(OURS),
    Peer("unsloth", ("unsloth==2026.10.9",), ("unsloth", "transformers", "peft", "trl"), ("torchvision",)),
    Peer("trl", ("trl==1.16.0", "peft==0.21.2"), ("trl", "transformers", "peft")),
    Peer("torchtune", ("torchtune==0.6.1", "torchao==0.10.0"), ("torchtune", "torchao")),
    Peer(
        "litgpt", ("litgpt==0.5.13", "requests"), ("litgpt", "lightning"),
        prepared=("$python", "$programs/litgpt_checkpoint.py", "$model", "$home/SmolLM2-135M-Instruct"), borrows=False,
    ),
    Peer(
        "llamafactory", ("llamafactory==0.9.5",), ("llamafactory", "transformers", "peft", "trl"),
        ("torchvision", "torchaudio"),
    ),
    Peer("swift", ("ms-swift==4.6.0",), ("ms-swift", "transformers", "peft", "trl")),
    Peer("adapters", ("adapters==1.3.0", "accelerate==1.15.0"), ("adapters", "transformers"), borrows=False),
)  # fmt: skip

_AUTOCAST = {"float32": "false", "bfloat16": "true"}
_KEEPS_MEMORY = {f"MALLOC_{name}_": str(size) for name, size in KEPT_MEMORY.items()}
"""What `peft train` tells the C library: freed memory is kept for the next step."""


def _ours(name: str, template: str, **changes: Any) -> Side:
    return Side(
        name,
        OURS,
        "peft train, as it comes",
        ("$python", "-m", "peftcli", "train", "$out/recipe.yaml", "--quiet"),
        files={template: "recipe.yaml"},
        precision=_AUTOCAST,
        environment={"PYTHONPATH": "$root", "PEFTCLI_CACHE": "$out/cache"},
        losses=r'"loss": ([0-9.]+(?:e-?[0-9]+)?)',
        log="run/metrics.jsonl",
        **changes,
    )


def _program(name: str, peer: str, says: str, script: str, rows: str, variant: str = "", **changes: Any) -> Side:
    command = ("$python", f"$programs/{script}", "$model", f"$rows/{rows}", "$dtype", "$out", *variant.split())
    return Side(name, peer, says, command, **changes)


_PAIRS = "prompt_completion.jsonl"
_CHATS = "chat_prompt_completion.jsonl"
_DECODER = (
    _ours(OURS, "ours_decoder.yaml"),
    _program("hf", OURS, "HF peft and the Trainer, as they come", "hf_peft.py", _PAIRS),
    _program(
        "hf+malloc", OURS, "the same, told by the environment to keep freed memory", "hf_peft.py", _PAIRS,
        environment=_KEEPS_MEMORY,
    ),
    _program("hf+grouped", OURS, "HF peft and the Trainer, rows grouped by length", "hf_peft.py", _PAIRS, "grouped"),
    _program(
        "unsloth", "unsloth", "its path for CPUs", "unsloth_sft.py", _CHATS,
        environment={"UNSLOTH_DISABLE_STATISTICS": "1"},
    ),
    _program("trl", "trl", "SFTTrainer, as it comes", "trl_sft.py", _CHATS),
    _program("trl+padding-free", "trl", "SFTTrainer, padding_free", "trl_sft.py", _CHATS, "padding_free"),
    _program("trl+packing", "trl", "SFTTrainer, packs of 2,048 tokens", "trl_sft.py", _CHATS, "packing"),
    Side(
        "torchtune", "torchtune", "lora_finetune_single_device",
        ("$bin/tune", "run", "lora_finetune_single_device", "--config", "$out/torchtune.yaml"),
        files={"torchtune.yaml": "torchtune.yaml"}, precision={"float32": "fp32", "bfloat16": "bf16"},
        environment={"PYTHONPATH": "$programs"}, losses=r"\bloss:([0-9.]+)",
    ),
    Side(
        "litgpt", "litgpt", "finetune_lora; the head untied, no clipping, the newline not learnt",
        (
            "$bin/litgpt", "finetune_lora", "$home/SmolLM2-135M-Instruct", "--out_dir", "$out", "--precision",
            "$precision", "--devices", "1", "--lora_r", "8", "--lora_alpha", "16", "--lora_dropout", "0.0",
            "--lora_query", "true", "--lora_value", "true", "--lora_key", "false", "--lora_projection", "false",
            "--lora_mlp", "false", "--lora_head", "false", "--data", "JSON", "--data.json_path", "$rows/litgpt",
            "--data.mask_prompt", "true", "--data.prompt_style", "smollm2", "--data.num_workers", "0",
            "--train.epochs", "1", "--train.global_batch_size", "8", "--train.micro_batch_size", "8",
            "--train.max_seq_length", "512", "--train.save_interval", "null", "--train.log_interval", "1",
            # its schedule divides by zero without warm-up, or with as many warm-up steps as steps (16 rows)
            "--train.lr_warmup_steps", "2",
            "--optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3, weight_decay: 0.0}}",
            "--eval.interval", "1000000", "--eval.max_new_tokens", "1", "--eval.final_validation", "false",
            "--eval.initial_validation", "false", "--seed", "0",
        ),
        precision={"float32": "32-true", "bfloat16": "bf16-true"}, losses=r"loss train: ([0-9.]+)",
    ),
    Side(
        "llamafactory", "llamafactory", "llamafactory-cli train; activations kept; bfloat16 is autocast",
        ("$bin/llamafactory-cli", "train", "$out/llamafactory.yaml"),
        files={"llamafactory.yaml": "llamafactory.yaml"}, precision=_AUTOCAST,
        environment={"DISABLE_VERSION_CHECK": "1", "PYTHONPATH": "$programs/without_torchaudio"},
    ),
    Side(
        "swift", "swift", "swift sft; activations kept; bfloat16 is autocast",
        (
            "$bin/swift", "sft", "--model", "$model", "--model_type", "llama", "--template", "chatml", "--system",
            "$system", "--dataset", "$rows/messages.jsonl", "--split_dataset_ratio", "0", "--torch_dtype", "$dtype",
            "--bf16", "$precision", "--fp16", "false", "--use_cpu", "true", "--device_map", "cpu", "--tuner_type",
            "lora", "--lora_rank", "8", "--lora_alpha", "16", "--lora_dropout", "0", "--target_modules", "q_proj",
            "v_proj", "--max_length", "512", "--attn_impl", "sdpa", "--check_model", "false", "--num_train_epochs", "1",
            "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1", "--learning_rate", "1e-3",
            "--lr_scheduler_type", "linear", "--warmup_ratio", "0", "--weight_decay", "0", "--gradient_checkpointing",
            "false", "--save_strategy", "no", "--eval_strategy", "no", "--report_to", "none", "--logging_steps", "1",
            "--dataset_num_proc", "1", "--dataloader_num_workers", "0", "--output_dir", "$out/run", "--add_version",
            "false", "--seed", "0",
        ),
        precision=_AUTOCAST, environment={"MODELSCOPE_CACHE": "$out/modelscope", "USE_HF": "1"},
    ),
)  # fmt: skip

_ENCODER = {
    "houlsby": (
        "DoubleSeqBnConfig",
        "{name: adapter, placement: houlsby, bottleneck_size: 24, non_linearity: silu, train_layer_norm: false}",
    ),
    "compacter": (
        "CompacterConfig",
        "{name: compacter, bottleneck_size: 12, phm_dim: 4, phm_rank: 1, non_linearity: gelu, train_layer_norm: false}",
    ),
    "prefix_tuning": ("PrefixTuningConfig", "{name: prefix_tuning, num_virtual_tokens: 30, encoder_hidden_size: 512}"),
    "mam": (
        "MAMConfig",
        "{name: mam, num_virtual_tokens: 30, encoder_hidden_size: 800, bottleneck_size: 192, scaling: 4.0, dropout: 0}",
    ),
    "unipelt": (
        "UniPELTConfig",
        "{name: unipelt, adapter: {placement: pfeiffer, bottleneck_size: 24}, "
        "prefix: {num_virtual_tokens: 10, encoder_hidden_size: 512}, lora: {r: 8}}",
    ),
}
"""For each method AdapterHub's default configuration, and this project's method of the same shape."""


def _both(method: str, configuration: str, ours: str) -> tuple[Side, Side]:
    work = f"encoder/{method}"
    script = ("$python", "$programs/adapterhub.py", "$encoder", "$rows/articles.jsonl", "$dtype", "$out", configuration)
    return (
        _ours(f"{OURS}/{method}", "ours_encoder.yaml", work=work, values={"method": ours}),
        Side(f"adapters/{method}", "adapters", f"AdapterHub's {configuration}", script, work=work),
    )


SIDES: tuple[Side, ...] = (*_DECODER, *(side for method, shapes in _ENCODER.items() for side in _both(method, *shapes)))
CORE = (OURS, "hf", "hf+malloc", "unsloth", "trl+padding-free", "torchtune")
"""What is measured without `--sides`: the fastest of what there is."""


Entry = TypeVar("Entry", Peer, Side)


def peer(name: str) -> Peer:
    """Return a peer by its name.

    Raises:
        SystemExit: there is none.
    """
    return _named(PEERS, name)


def side(name: str) -> Side:
    """Return a side by its name.

    Raises:
        SystemExit: there is none.
    """
    return _named(SIDES, name)


def _named(entries: tuple[Entry, ...], name: str) -> Entry:
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise SystemExit(f"there is no {name}; there are {', '.join(entry.name for entry in entries)}")
    return found[0]


def reference(measured: Side) -> Side:
    """Return this project's side of the same work."""
    return next(one for one in SIDES if one.work == measured.work and one.name.split("/")[0] == OURS)
