"""Write everything that a model needs beside its weights, in one place for every deliverable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.deliverables.carried_files import TEMPLATE_FILE, copy_files, other_files
from peftcli.deliverables.config_file import CONFIG, make_readable
from peftcli.deliverables.generation_file import write_generation_config
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.deliverables.tokenizer_files import write_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def write_beside_weights(directory: Path, leaving: LeavingModel, model: PreTrainedModel) -> list[str]:
    """Write tokenizer, chat template, generation settings, and the base's processor, licence and code files.

    Args:
        directory: of the weights.
        leaving: the description of the model.
        model: the live one, or its shape on the meta device.

    Returns:
        Notes for the user.
    """
    if leaving.base is not None:
        copy_files(leaving.base, other_files(leaving.base), directory)
    write_tokenizer(directory, leaving)
    return write_generation_config(directory, leaving, model)


def write_config(directory: Path, config: PretrainedConfig, leaving: LeavingModel) -> None:
    """Write config.json. It comes last, because a directory without it does not load."""
    config.save_pretrained(directory)
    make_readable(directory / CONFIG, config, leaving)


def write_beside_adapter(directory: Path, leaving: LeavingModel) -> None:
    """Write what the base's own files lack for the use of an adapter: the tokenizer if tokens were added, and the chat
    template that was trained with.
    """
    if leaving.grown:
        write_tokenizer(directory, leaving)
    elif leaving.texts.chat_template is not None:
        (directory / TEMPLATE_FILE).write_text(leaving.texts.chat_template, encoding="utf-8")
