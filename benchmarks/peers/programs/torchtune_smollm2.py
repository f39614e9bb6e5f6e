"""Components for torchtune's recipe: SmolLM2-135M out of its own Llama 3.2 builder, and the model's tokenizer.

torchtune 0.6.1 has neither: its tokenizers do not read a tokenizer.json with a chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared_settings import prompt, reply
from tokenizers import Tokenizer
from torchtune.models.llama3_2 import lora_llama3_2
from torchtune.modules.transforms import Transform


def lora_smollm2_135m(**lora: Any) -> Any:
    """Return the model with LoRA; `lora` are the arguments of torchtune's builder that concern it."""
    return lora_llama3_2(
        **lora, vocab_size=49152, num_layers=30, num_heads=9, num_kv_heads=3, embed_dim=576, max_seq_len=8192,
        intermediate_dim=1536, norm_eps=1e-5, rope_base=100_000, scale_factor=1, tie_word_embeddings=True,
    )  # fmt: skip


class ChatTokenizer(Transform):
    """From {"messages": a question and an answer} to tokens, and a mask that is True where nothing is learnt."""

    def __init__(self, path: str, max_seq_len: int) -> None:
        self.tokenizer, self.max_seq_len = Tokenizer.from_file(path), max_seq_len
        self.pad_id = self.eos_id = self.tokenizer.token_to_id("<|im_end|>")

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        question, answer = (message.text_content for message in sample["messages"])
        parts = [
            self.tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt(question), reply(answer))
        ]
        mask = [index == 0 for index, ids in enumerate(parts) for _ in ids]
        return {"tokens": [*parts[0], *parts[1]][: self.max_seq_len], "mask": mask[: self.max_seq_len]}
