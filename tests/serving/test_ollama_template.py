"""Chat templates as Go templates: what Ollama renders is what the Jinja template renders, or there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from peftcli.data.chat.chat_template import ChatTemplate, FilledTemplate
from peftcli.data.chat.named_templates import choose_template
from peftcli.serving.ollama_template import Turn, pieces_of
from tests.serving.served_models import TEMPLATE, byte_tokenizer

ROUNDS = [("user", "Hello"), ("assistant", "Hi {{ there }}"), ("user", "How are\nyou?")]
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + TEMPLATE
BEGIN = "{{ bos_token }}" + TEMPLATE
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
NUMBERED = "{% for message in messages %}{{ loop.index }}: {{ message.content }}\n{% endfor %}"


def rendered(text: str, tokenizer: PreTrainedTokenizerFast):
    """Return a function that renders turns with a Jinja template."""
    filled = FilledTemplate(ChatTemplate("test", text), tokenizer)

    def render(turns: Sequence[Turn], answer: bool) -> str:
        return filled.render([{"role": role, "content": words} for role, words in turns], None, generate=answer)[0]

    return render


def go(template: str, turns: Sequence[Turn]) -> str:
    """Render the few words of Go templates that are written: if not .System, range .Messages, else if eq .Role."""
    literal = re.compile(r'\{\{ "\{\{" \}\}')
    head, loop, tail = re.fullmatch(
        r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.S
    ).groups()
    default = re.fullmatch(r"(.*)\{\{ if not \.System \}\}(.*)\{\{ end \}\}", head, re.S)
    if default is not None:
        head = default[1] + ("" if turns[0][0] == "system" else default[2])
    branches = dict(re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', loop, re.S))
    body = "".join(branches.get(role, "").replace("{{ .Content }}", words) for role, words in turns)
    return literal.sub("{{", head) + body + literal.sub("{{", tail)


@pytest.mark.parametrize("text", [TEMPLATE, DEFAULT, BEGIN, NO_SYSTEM], ids=["chatml", "default", "begin", "no system"])
def test_ollama_renders_what_the_template_renders(text: str) -> None:
    render = rendered(text, byte_tokenizer())
    pieces = pieces_of(render, "")
    assert pieces is not None
    assert (pieces.system is None) == (text is NO_SYSTEM)
    conversations = [ROUNDS[:1], ROUNDS] + ([[("system", "Be brief."), *ROUNDS]] if pieces.system else [])
    for turns in conversations:
        assert go(pieces.go(), turns) == render(turns, True)


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr"])
def test_named_templates_can_be_expressed_or_are_left_out(name: str) -> None:
    tokenizer = byte_tokenizer()
    template = choose_template(name, tokenizer)
    assert template is not None
    render = rendered(template.text, tokenizer)
    pieces = pieces_of(render, "")
    assert pieces is not None
    assert go(pieces.go(), ROUNDS) == render(ROUNDS, True)


def test_the_token_that_ollama_puts_first_is_left_out() -> None:
    tokenizer = byte_tokenizer()
    pieces = pieces_of(rendered(BEGIN, tokenizer), "<|begin|>")
    assert pieces is not None and "<|begin|>" not in pieces.go()


def test_a_template_that_refuses_a_longer_conversation_is_not_translated() -> None:
    short = "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}" + TEMPLATE
    assert pieces_of(rendered(short, byte_tokenizer()), "") is None


def test_a_template_that_does_more_is_not_translated() -> None:
    tokenizer = byte_tokenizer()
    assert pieces_of(rendered(NUMBERED, tokenizer), "") is None
    assert pieces_of(rendered("{{ messages[-1].content | upper }}", tokenizer), "") is None
