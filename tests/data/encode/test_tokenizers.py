"""Every chat template on every kind of tokenizer: what is learnt starts where inference's own tokens end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from peftcli.data.chat.named_templates import template_names
from peftcli.data.prepare import prepare_for_prediction
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec
from tests.data.tools import SPECIALS, chat_tokenizer, ready, write_jsonl

CORPUS = ["What is two plus two? The answer is four. Hello there, how are you today? I am fine, thank you."] * 3
CHAT = [
    {"role": "user", "content": "What is two plus two?"},
    {"role": "assistant", "content": "The answer is four."},
    {"role": "user", "content": "Thank you. "},
    {"role": "assistant", "content": "I am fine é☃, thank you"},
]


def sentencepiece_like(scheme: str) -> Any:
    """Return a tokenizer as Llama 2 (prefix on the first word or always) has it: Metaspace, byte fallback, BOS."""
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # merges stay inside words, as SentencePiece's
    spaces = decoders.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), spaces, decoders.Fuse()])
    special = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[3:]})
    return tokenizer


def lowercasing() -> Any:
    """Return a tokenizer whose normaliser changes the text, so that offsets are not those of the tokens' own text."""
    tokenizer = chat_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


TOKENIZERS = {
    "byte_level": chat_tokenizer,
    "metaspace_first": lambda: sentencepiece_like("first"),
    "metaspace_always": lambda: sentencepiece_like("always"),
    "metaspace_never": lambda: sentencepiece_like("never"),
    "lowercasing": lowercasing,
}


@pytest.mark.parametrize("template", template_names())
@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_the_prompt_of_inference_is_the_unlearnt_beginning(kind: str, template: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]()
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}]), chat_template=template)
    (row,) = data.train
    labels = np.asarray(row.labels)
    spec = DataSpec(path="x.jsonl", chat_template=template)
    for turn in (1, 3):
        asked = write_jsonl(tmp_path / f"{turn}.jsonl", [{"messages": CHAT[:turn]}])
        prompt = prepare_for_prediction(str(asked), spec, "causal_lm", tokenizer)[0].input_ids
        assert row.input_ids[: len(prompt)].tolist() == prompt.tolist()
        assert labels[len(prompt)] >= 0 and labels[len(prompt) - 1] == -100
    starts = np.flatnonzero((labels >= 0) & (np.concatenate(([-100], labels[:-1])) < 0))
    assert len(starts) == 2
    end = data.stop_token_ids[-1]
    ends = np.flatnonzero((labels >= 0) & (np.concatenate((labels[1:], [-100])) < 0))
    assert row.input_ids[ends].tolist() == [end, end], "each answer's learnt part ends with the end of turn"
    assert data.report.checks["prefixes_disagreed"] == 0


def test_a_tokenizer_without_offsets_learns_the_same(tmp_path: Path) -> None:
    """ByT5's tokenizer is Python code: bytes, no offsets."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "é? ", "completion": "yes ☃"}])
    data = ready(tokenizer, path)
    labels = np.asarray(data.train[0].labels)
    assert tokenizer.decode(labels[labels >= 0]) == "yes ☃</s>"
    assert tokenizer.decode(data.train[0].input_ids) == "é? yes ☃</s>"
    text = "é☃ " * 30
    rows = write_jsonl(tmp_path / "b.jsonl", [{"text": text, "label": n} for n in range(2)])
    made = ready(tokenizer, rows, "sequence_classification", max_length=20)
    assert made.report.counts.truncated == 2
    assert made.train[0].input_ids.tolist() == tokenizer(text, truncation=True, max_length=20)["input_ids"]
    pairs = ready(tokenizer, write_jsonl(tmp_path / "c.jsonl", [{"input": "a", "target": "b"}]), "seq2seq_lm")
    assert np.asarray(pairs.train[0].labels).tolist() == tokenizer("b")["input_ids"]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_tagged_words_are_tokenised_as_running_text(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]()
    words = ["What", "is", "thank-you", "é☃", "?"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"tokens": words, "tags": ["A", "B", "C", "D", "E"]}])
    data = ready(tokenizer, path, "token_classification")
    row = data.train[0]
    assert row.input_ids.tolist() == tokenizer(" ".join(words))["input_ids"]
    labels = np.asarray(row.labels)
    assert labels[labels >= 0].tolist() == [0, 1, 2, 3, 4]


def test_tags_need_a_tokenizer_that_knows_its_words(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    path = write_jsonl(tmp_path / "a.jsonl", [{"tokens": ["a"], "tags": ["O"]}])
    with pytest.raises(UserError, match="token_classification needs a fast tokenizer"):
        ready(ByT5Tokenizer(), path, "token_classification")


def test_a_prompt_is_checked(tmp_path: Path) -> None:
    spec = DataSpec(path="x.jsonl", chat_template="gemma")
    for role, message in (("robot", "message 1 has the role 'robot'"), ("tool", "the chat template gemma refuses")):
        path = write_jsonl(tmp_path / f"{role}.jsonl", [{"messages": [{"role": role, "content": "x"}]}])
        with pytest.raises(UserError, match=message):
            prepare_for_prediction(str(path), spec, "causal_lm", chat_tokenizer())
