"""Load a base model's tokenizer, choose its padding token, and fit the model to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem, UserError
from peftcli.layers.seeded import seeded
from peftcli.models.load.load_errors import explain_load_errors
from peftcli.models.load.model_files import ModelSource, find_source
from peftcli.models.load.tokenizer_errors import check_tokenizer, tokenizer_error
from peftcli.models.weights.weight_damage import refuse_pointers
from peftcli.recipe.schema import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROCESSOR_TEMPLATE = "chat_template.json"
"""Where processors of images keep their chat template, if not in chat_template.jinja."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "*.model",
    "vocab.*",
    "*.tiktoken",
    "tekken.json",
    "tokenization_*.py",
    "*vocab*.json",
)
# Tokens that vocabularies reserve for padding or other uses, in order of preference. None of them occurs in text.
_PAD_CANDIDATES = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|finetune_right_pad|>",
    "<|vision_pad|>",
    "<|fim_pad|>",
    "<|reserved_special_token_0|>",
    "<unused0>",
    "<|endoftext|>",
    "<unk>",
    "[UNK]",
)


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base, with a padding token and `spec.new_special_tokens`.

    Padding goes to the right here; generation pads to the left in its own batches.

    Raises:
        UserError: there is none, or its files cannot be read.
    """
    return load_tokenizer_with_notes(spec)[0]


def load_tokenizer_with_notes(spec: ModelSpec) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Return the tokenizer as `load_tokenizer` does, and notes on what was decided."""
    tokenizer = _from_files(spec)
    notes = []
    if spec.new_tokens:
        added = _add_tokens(tokenizer, spec)
        notes.append(f"{added} special tokens added to the vocabulary, which now has {len(tokenizer)}")
    note = choose_padding(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer, [*notes, note] if note else notes


def plain_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer with `spec.new_special_tokens`, its padding as the base has it.

    Raises:
        UserError: there is none, or its files cannot be read.
    """
    tokenizer = _from_files(spec)
    _add_tokens(tokenizer, spec)
    return tokenizer


def _from_files(spec: ModelSpec) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    source = find_source(spec.name_or_path)
    keywords = source.keywords(revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    # Without these files transformers silently returns a tokenizer that has only special tokens.
    if source.kind == "directory" and source.path is not None and not _has_tokenizer_files(source.path):
        raise UserError(_no_tokenizer(spec))
    if source.kind == "directory" and source.path is not None:
        refuse_pointers(source.path, _TOKENIZER_FILES)
    with explain_load_errors(source, spec):
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.location(), **keywords)
        except Exception as error:
            found = tokenizer_error(source, error)
            raise error if found is None else found from error
    check_tokenizer(tokenizer, source)
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder) + 1:
        raise UserError(_no_tokenizer(spec))
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processor_template(source, keywords)
    return tokenizer


def _processor_template(source: ModelSource, keywords: Mapping[str, Any]) -> str | None:
    """Return the chat template that a processor of images keeps in a file of its own; None without one.

    transformers' tokenizers do not read that file. Its conversations are those of the tokenizer, too.

    Args:
        keywords: where files of the hub come from.

    Raises:
        UserError: the file holds no template.
    """
    if source.kind == "gguf":
        return None
    file = None if source.path is None else source.path / PROCESSOR_TEMPLATE
    if source.kind == "hub":
        from transformers.utils import cached_file

        where = {key: keywords[key] for key in ("revision", "local_files_only")}
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(source.name, PROCESSOR_TEMPLATE, **where, **quiet)
        file = None if found is None else Path(found)
    if file is None or not file.is_file():
        return None
    try:
        text = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        remedy = "copy or download it again, or remove it and name a template with data.chat_template"
        raise UserError(Problem(f"{file} holds no chat template", key="model.name_or_path", suggestion=remedy))
    return text


def _add_tokens(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> int:
    """Add the recipe's new tokens; return how many the vocabulary did not have."""
    if not spec.new_tokens:
        return 0
    added: int = tokenizer.add_special_tokens(
        {"additional_special_tokens": spec.new_tokens}, replace_extra_special_tokens=False
    )
    return added


def _has_tokenizer_files(directory: Path) -> bool:
    return any(found for pattern in _TOKENIZER_FILES for found in directory.glob(pattern))


def _no_tokenizer(spec: ModelSpec) -> Problem:
    return Problem(
        f"{spec.name_or_path!r} has no tokenizer files",
        key="model.name_or_path",
        suggestion="copy tokenizer.json and tokenizer_config.json of the original model into the directory",
    )


def choose_padding(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give the tokenizer a padding token without changing the vocabulary; return a note about the choice.

    The end-of-sequence token is the last resort: labels and attention are masked by position, so that even then padding
    is never learnt and the end is, where it belongs to a row; a classifier that pools the last token which is not
    padding would look before a trailing end-of-sequence token.
    """
    vocabulary = tokenizer.get_vocab()
    shared = tokenizer.pad_token is not None and tokenizer.pad_token == tokenizer.eos_token
    if tokenizer.pad_token is not None and not shared:
        return None
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    for token in _PAD_CANDIDATES:
        if token in vocabulary and token not in taken:
            tokenizer.pad_token = token
            return f"the tokenizer has no padding token of its own: {token} is used"
    if tokenizer.eos_token is None:
        raise UserError(
            Problem(
                "the tokenizer has neither a padding nor an end-of-sequence token",
                key="model.new_special_tokens",
                suggestion="add one: model.new_special_tokens: ['<pad>']",
            )
        )
    tokenizer.pad_token = tokenizer.eos_token
    return (
        f"{tokenizer.eos_token} is both padding and the end of sequences; padding is masked by position, never learnt"
    )


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> list[str]:
    """Tell the model its padding token, and grow its embeddings to the tokenizer's vocabulary; return notes.

    New rows start from the mean of the old ones. An embedding larger than the vocabulary (a round size) stays.
    """
    import torch

    notes = []
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        with seeded(seed):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            if table is not None and table.weight.shape[0] == len(tokenizer):
                with torch.no_grad():
                    table.weight[rows:] = table.weight[:rows].float().mean(0).to(table.weight.dtype)
        notes.append(f"embeddings grown from {rows} to {len(tokenizer)} rows; new rows are the mean of the old ones")
    return notes
