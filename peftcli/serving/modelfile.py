"""The Modelfile of an Ollama model: the GGUF file, the chat template in Go, the texts that end an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from peftcli.data.chat.chat_template import FilledTemplate
from peftcli.data.chat.named_templates import PLAIN, choose_template
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.models.load.generation_settings import GENERATION_CONFIG
from peftcli.serving.ollama_template import Pieces, Turn, pieces_of
from peftcli.tasks.decoding import token_ids

MODELFILE = "Modelfile"


def modelfile(
    file: str, leaving: LeavingModel, adapter_on: str | None, *, plain_text: bool = False
) -> tuple[str, list[str]]:
    """Return the text of a Modelfile, and notes.

    Args:
        file: name of the GGUF file beside it.
        leaving: the model's tokenizer, template and ends of answers.
        adapter_on: a model of Ollama's library, or a GGUF file, on which the file is an adapter; None for a model.
        plain_text: it was trained without a chat template, whatever the tokenizer has.
    """
    lines = [f"FROM ./{file}"] if adapter_on is None else [f"FROM {adapter_on}", f"ADAPTER ./{file}"]
    template, notes = _template(leaving, plain_text)
    if template is not None and not _held(template):
        template = None
        notes.append("a Modelfile cannot hold the characters of the chat template, so there is no TEMPLATE")
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    stops = _stops(leaving)
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stops if _held(text)]
    notes += [f"a Modelfile cannot hold the stop text {text!r}" for text in stops if not _held(text)]
    return "\n".join(lines) + "\n", notes


def model_name(run: Path) -> str:
    """Return a name that Ollama takes for the model of a run."""
    found = re.sub(r"[^a-z0-9._-]+", "-", run.resolve().name.lower()).strip("-._")
    return found or "trained"


def _template(leaving: LeavingModel, plain_text: bool) -> tuple[str | None, list[str]]:
    """Return the Go template, None where there is none, and notes."""
    tokenizer, learnt = leaving.tokenizer, leaving.texts.chat_template
    if learnt is not None:
        tokenizer.chat_template = learnt
    jinja = choose_template(PLAIN if plain_text else None, tokenizer)
    if jinja is None:
        why = "trained without a chat template" if plain_text else "there is no chat template"
        return "{{ .Prompt }}", [f"{why}: Ollama gives the model each prompt as it is"]
    filled = FilledTemplate(jinja, tokenizer)

    def render(turns: Sequence[Turn], answer: bool) -> str:
        return filled.render([{"role": role, "content": text} for role, text in turns], None, generate=answer)[0]

    pieces = pieces_of(render, _begin(leaving))
    if pieces is None:
        return None, ["the chat template does more than put texts around turns, so the Modelfile has no TEMPLATE"]
    return pieces.go(), _system_note(pieces)


def _system_note(pieces: Pieces) -> list[str]:
    return [] if pieces.system else ["the chat template takes no system message, and in Ollama one has no effect"]


def _begin(leaving: LeavingModel) -> str:
    """Return the token that the tokenizer puts before a text by itself."""
    tokenizer = leaving.tokenizer
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def _stops(leaving: LeavingModel) -> list[str]:
    """Return the texts of the tokens that end an answer: those that were learnt, then the base's own."""
    tokenizer = leaving.tokenizer
    settings = leaving.settings_of_base(GENERATION_CONFIG) or leaving.settings_of_base("config.json")
    of_base = [tokenizer.eos_token_id, settings.get("eos_token_id")]
    numbers = [*leaving.texts.stop_token_ids, *(number for found in of_base for number in token_ids(found))]
    known = (number for number in numbers if isinstance(number, int) and 0 <= number < len(tokenizer))
    texts = (str(tokenizer.decode([number])) for number in known)
    return list(dict.fromkeys(text for text in texts if text))


def _held(text: str) -> bool:
    """Return whether Ollama reads a text as it is written: it drops what cannot be printed, and ends at three quotes.

    Source: parser/parser.go of ollama/ollama at fb30760.
    """
    return '"""' not in text and all(sign.isprintable() or sign in "\n\r\t" for sign in text)


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
