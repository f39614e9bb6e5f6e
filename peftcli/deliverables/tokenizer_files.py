"""Write the tokenizer of a model that leaves: the base's own files, edited no further than needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftcli.deliverables.carried_files import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    copy_files,
    read_object,
    tokenizer_files,
    write_object,
)
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.errors import UserError
from peftcli.models.load.tokenizers import PROCESSOR_TEMPLATE, plain_tokenizer

_OUR_LOADING = ("is_local", "local_files_only")
"""Arguments of loading that transformers writes as if they were settings of the tokenizer."""
_ONLY_5 = "TokenizersBackend"
_EITHER = "PreTrainedTokenizerFast"
"""The class that transformers 4 and 5 both know for a tokenizer that is all in tokenizer.json."""


def write_tokenizer(directory: Path, leaving: LeavingModel) -> None:
    """Write the tokenizer's files.

    Without new tokens they are the base's, byte for byte, but for tokenizer_config.json where it must change: the chat
    template of training, a class that transformers 4 does not know, a padding token that the model needs.
    """
    tokenizer, base, template = leaving.tokenizer, leaving.base, leaving.texts.chat_template
    names = tuple(tokenizer.vocab_files_names.values())
    files = [] if base is None or leaving.grown else tokenizer_files(base, names)
    if base is not None and files:
        copy_files(base, files, directory)
    else:
        _save(directory, leaving)
    if template is not None:
        for file in (*directory.glob("chat_template*"), *directory.glob("additional_chat_templates/*")):
            file.unlink()
        for folder in directory.glob("additional_chat_templates"):
            folder.rmdir()
        (directory / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    else:
        _repeat_template_of_processor(directory, leaving)
    path = directory / TOKENIZER_CONFIG
    if path.is_file():
        config = read_object(path)
        edited = _readable(config)
        if template is not None:
            edited["chat_template"] = template
        padding = _padding_of_training(leaving)
        if padding is not None:
            edited["pad_token"] = padding
        if edited != config:
            write_object(path, edited)


def _repeat_template_of_processor(directory: Path, leaving: LeavingModel) -> None:
    """Write the base's chat template where a tokenizer alone finds it, if only a file of its processor holds it."""
    own = directory / TEMPLATE_FILE
    known = own.exists() or "chat_template" in read_object(directory / TOKENIZER_CONFIG)
    text = leaving.tokenizer.chat_template
    if (directory / PROCESSOR_TEMPLATE).is_file() and not known and isinstance(text, str):
        own.write_text(text, encoding="utf-8")


def _save(directory: Path, leaving: LeavingModel) -> None:
    """Save the base's tokenizer with the new tokens; the live one, if the base cannot be read any more."""
    tokenizer = leaving.tokenizer
    try:
        plain = plain_tokenizer(leaving.spec)
    except UserError:
        plain = tokenizer
    if tokenizer.pad_token in leaving.spec.new_tokens:
        plain.pad_token = tokenizer.pad_token  # added for this purpose
    plain.save_pretrained(directory)
    path = directory / TOKENIZER_CONFIG
    write_object(path, {key: value for key, value in read_object(path).items() if key not in _OUR_LOADING})


def _readable(config: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json that transformers 4 reads, too: its class, and its list of special tokens."""
    edited = dict(config)
    if edited.get("tokenizer_class") == _ONLY_5:
        edited["tokenizer_class"] = _EITHER
    if isinstance(edited.get("extra_special_tokens"), list):
        known, extra = edited.get("additional_special_tokens", []), edited.pop("extra_special_tokens")
        edited["additional_special_tokens"] = list(dict.fromkeys([*known, *extra]))
    return edited


def _padding_of_training(leaving: LeavingModel) -> str | None:
    """Return the padding token of training where a classifier needs it: it pools by this token, and the base's
    tokenizer pads with another one, or with none.
    """
    if not leaving.pools_by_padding:
        return None
    try:
        own = plain_tokenizer(leaving.spec).pad_token
    except UserError:
        return None
    token = leaving.tokenizer.pad_token
    return None if token is None or token == own else str(token)
