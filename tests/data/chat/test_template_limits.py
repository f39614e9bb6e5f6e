"""A chat template cannot run for ever, nor take all memory; within limits it renders as transformers does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from peftcli.data.chat.chat_template import ChatTemplate, FilledTemplate
from peftcli.data.chat.named_templates import FOLDER, choose_template, template_names
from peftcli.data.chat.surroundings import learn_surroundings
from peftcli.data.read.records import RowError
from peftcli.errors import UserError

CHAT = [
    {"role": "user", "content": "hello world"},
    {"role": "assistant", "content": "good", "thinking": "so", "parts": [{"type": "text", "text": "a"}, None, 1.5]},
]
_GROWING = "{%% set ns = namespace(a=%s) %%}{%% for i in range(99) %%}{%% set ns.a = %s %%}{%% endfor %%}{{ ns.a }}"
BOMBS = [
    '{{ "x" * 10**9 }}',
    '{{ 10**9 * ["x"] }}',
    "{{ 10**(10**8) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    _GROWING % ("'x'", "ns.a ~ ns.a"),
    _GROWING % ("'x'", "ns.a + ns.a"),
    _GROWING % ("'x'", "'%s%s' % (ns.a, ns.a)"),
    _GROWING % ("[1]", "[ns.a, ns.a]"),
    _GROWING % ("[1]", "ns.a[:] + ns.a"),
    _GROWING % ("{}", "dict(a=ns.a, b=ns.a)"),
    '{% set x %}{% for i in range(9999) %}{{ "x" * 99999 }}{% endfor %}{% endset %}',
    "{{ messages | tojson(indent=10**9) }}",
    "{{ range(99999) | list | tojson(indent=9999) }}",
    '{{ "x" | center(10**9) }}',
    '{{ "x".ljust(10**9) }}',
    '{{ messages | map(attribute="role") | map("center", 10**9) | list }}',
    '{{ ("a\n" * 9999) | indent(10**6) }}',
    '{{ "%1000000000d" % 5 }}',
    '{{ "%*d" % (10**9, 5) }}',
    '{{ "%1000000000d" | format(5) }}',
    '{{ "{:1000000000}".format(5) }}',
    '{{ "{:{}}".format(5, 10**9) }}',
    '{{ ("a" * 99999).replace("a", "b" * 99999) }}',
    '{{ ("a" * 99999) | replace("a", "b" * 99999) }}',
    '{{ ("a" * 99999).join("b" * 99999) }}',
    '{{ ("b" * 99999) | join("a" * 99999) }}',
    '{{ ("\t" * 9999).expandtabs(10**7) }}',
    '{{ "aaaa".translate({97: "x" * 10**7 * 4}) }}',
    '{{ (5).to_bytes(10**9, "big") }}',
    "{{ [1] | batch(10**9, 0) | list }}",
    "{{ [1] | slice(10**9) | list }}",
    '{{ 1.5 | round(10**9, "ceil") }}',
    "{{ ([[1]] * 30000) | sum(start=[]) }}",
    '{{ strftime_now("%0999999999d") }}',
    "{{ lipsum(n=10**9) }}",
    '{{ "<!--x-->" | striptags }}',
]


def filled(text: str) -> FilledTemplate:
    tokens = {"eos_token": "</s>", "bos_token": "<s>"}
    return FilledTemplate(ChatTemplate("bomb.jinja", text), SimpleNamespace(special_tokens_map=tokens))


@pytest.mark.parametrize("text", BOMBS)
def test_a_template_that_wants_too_much_is_refused_by_name_and_line(text: str) -> None:
    template = filled("\n" + text)
    with pytest.raises(UserError, match=r"the chat template bomb\.jinja is refused: it .*\(line [23] of it\)"):
        template.render(CHAT, None)


MISTAKES = [
    "{{ 1 // 0 }}",
    "{% for i in range(1000000) %}x{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ (10 ** 400) | float }}",
    "{{ 10 ** 4300 ~ '' }}",
    "{{ messages[7].content }}",
    "{% include 'x' %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('no') }}",
]


@pytest.mark.parametrize("text", MISTAKES)
def test_a_template_that_fails_on_a_row_is_an_error_of_the_row(text: str) -> None:
    with pytest.raises(RowError, match=r"the chat template bomb\.jinja refuses roles user assistant: .*line 2 of it"):
        filled("\n" + text).render(CHAT, None)


@pytest.mark.parametrize(
    "text",
    ["{% break %}", "{{ 1 +", "{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "{{ " + "9" * 5000 + " }}",
     "{{ " + "(" * 999 + "1" + ")" * 999 + " }}", "x" * 2_000_001],
    ids=["break", "syntax", "nested", "digits", "brackets", "long"],
)  # fmt: skip
def test_a_template_that_cannot_be_compiled_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"bomb\.jinja:1: not a Jinja template"):
        filled(text).render(CHAT, None)


def test_a_broken_template_hinders_no_plain_text() -> None:
    for text in (BOMBS[3], "{% break %}"):
        assert learn_surroundings(filled(text), SimpleNamespace()) is None


def test_a_tokenizer_whose_template_is_no_text_is_named() -> None:
    with pytest.raises(UserError, match="a chat template that is no text"):
        choose_template(None, SimpleNamespace(chat_template={"default": 5}))


def test_long_conversations_may_cost_more() -> None:
    turns = [{"role": "user", "content": "x" * 2_000_000}] * 20
    text = "{% for m in messages %}{{ m.content | trim }}{% for n in messages[loop.index:] %}{% endfor %}{% endfor %}"
    assert len(filled(text).render(turns, None)[0]) == 40_000_000


OWN = """{%- for m in messages[:] -%}{% if m.thinking %}{{ m.thinking | center(9) }}{% endif %}
{% generation %}{{ m['content'] ~ eos_token + "a%5.2f" % 1.5 }}{{ '{:>4}'.format(loop.index) }}{% endgeneration %}
{{ (m.parts or []) | tojson(indent=2) }}{{ [m.role, 'x'] | join(', ') }}{{ m.items() | list | length }}
{% if loop.index > 5 %}{% break %}{% endif %}{% endfor %}{{ tools }}{{ m is defined }}{{ 'a,b'.split(',')[1:] }}"""
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("text", [OWN, *((FOLDER / f"{name}.jinja").read_text() for name in template_names())])
@pytest.mark.parametrize("generate", [False, True])
def test_the_text_and_the_marks_are_those_of_transformers(text: str, generate: bool) -> None:
    tags = "generation" in text.replace("add_generation_prompt", "")
    tools: Any = TOOLS if text is OWN else None
    theirs, marks = render_jinja_template(
        conversations=[CHAT], tools=tools, chat_template=text, return_assistant_tokens_mask=tags,
        add_generation_prompt=generate, eos_token="</s>", bos_token="<s>",
    )  # fmt: skip
    assert filled(text).render(CHAT, tools, generate=generate, tags=tags) == (theirs[0], marks[0] if tags else [])
