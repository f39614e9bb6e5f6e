"""Read what was written beside weights as a stranger does, with transformers' own classes, before it appears."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from peftcli.data.chat.named_templates import choose_template
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.deliverables.write_beside import write_config
from peftcli.errors import VerificationFailed
from peftcli.process_state import quiet_transformers
from peftcli.tasks.decoding import token_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TEXTS = ("The quick brown fox, and 12.5% of 3 dogs!", "Zwölf  Boxkämpfer\n\tjagen «Viktor»")


def check_files(directory: Path, config: PretrainedConfig, leaving: LeavingModel) -> None:
    """Check that plain transformers reads the tokens, the template and the ends of an answer that were trained with.

    Args:
        directory: of the model, config.json not written yet.
        config: of the model.
        leaving: what it should hold.

    Raises:
        VerificationFailed: it reads others; names the file.
    """
    copy = directory / "as-a-stranger-reads-it"  # of the same disk, which has been found large enough
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("*.safetensors*", copy.name))
    with quiet_transformers():
        write_config(copy, config, leaving)
        _check_tokenizer(copy, leaving)
        if leaving.info.generates:
            _check_generation(copy, leaving)
    shutil.rmtree(copy)


def _check_tokenizer(directory: Path, leaving: LeavingModel) -> None:
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=leaving.spec.trust_remote_code
    )
    for text in (*_TEXTS, *leaving.spec.new_tokens):
        if read(text)["input_ids"] != leaving.tokenizer(text)["input_ids"]:
            raise VerificationFailed(f"the written tokenizer divides {text!r} into other tokens than in training")
    learnt = leaving.texts.chat_template
    template = choose_template(None, read)
    if learnt is not None and (template is None or template.text != learnt):
        raise VerificationFailed("the written tokenizer's chat template is not the one used in training")


def _check_generation(directory: Path, leaving: LeavingModel) -> None:
    from transformers import GenerationConfig

    settings = GenerationConfig.from_pretrained(directory, local_files_only=True)
    missing = set(leaving.texts.stop_token_ids) - set(token_ids(settings.eos_token_id))
    if missing:
        names = ", ".join(map(str, leaving.tokenizer.convert_ids_to_tokens(sorted(missing))))
        raise VerificationFailed(f"the written generation_config.json does not stop at {names}")
    settings.save_pretrained(directory)  # as whoever trains it next will
