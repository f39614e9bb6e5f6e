"""Which characters of a rendered conversation are learnt, for every template shape and every way to find them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from peftcli.data.chat.chat_template import ChatTemplate, FilledTemplate
from peftcli.data.chat.conversations import Conversation, from_messages
from peftcli.data.chat.named_templates import choose_template, template_names
from peftcli.data.chat.plain_text import plain_text
from peftcli.data.chat.rendered_text import Rendered
from peftcli.data.chat.renderer import ChatRenderer
from peftcli.data.chat.spans import AnswerSpans
from peftcli.data.chat.surroundings import TurnEnd
from peftcli.data.read.records import RowError
from peftcli.errors import UserError

END = {
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "llama2": " </s>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "phi3": "<|end|>",
    "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "zephyr": "</s>",
}
LEAD = {"llama2": " ", "mistral": " "}
TAGGED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    out = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + out


def renderer(tokenizer: Any, name: str | ChatTemplate, train_on: Any = "completions") -> ChatRenderer:
    template = name if isinstance(name, ChatTemplate) else choose_template(name, tokenizer)
    assert template is not None
    return ChatRenderer(tokenizer, template, train_on)


def learnt(item: Rendered) -> list[str]:
    return [item.text[start:end] for start, end in item.spans]


def conversation(messages: list[dict[str, Any]], tools: Any = None) -> Conversation:
    return from_messages(messages, tools, "")


def test_every_named_template_is_in_the_table() -> None:
    assert template_names() == sorted(END)


@pytest.mark.parametrize("name", sorted(END))
def test_answers_with_their_end_of_turn_are_learnt(tokenizer: Any, name: str) -> None:
    made = renderer(tokenizer, name)
    item = made.render(conversation(turns("Hi", "Hello.", "How?", "Fine.", system="Be kind.")))
    think = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    lead, end = LEAD.get(name, ""), END[name]
    assert learnt(item) == [f"{lead}Hello.{end}", f"{think}{lead}Fine.{end}"]
    assert not item.whole and not item.close
    assert made.prefix_rendered == 0, "the learnt surroundings should fit"


@pytest.mark.parametrize("name", sorted(END))
def test_learning_starts_where_generation_starts(tokenizer: Any, name: str) -> None:
    made = renderer(tokenizer, name)
    messages = turns("Hi", "Hello.", "How?", "Fine.")
    item = made.render(conversation(messages))
    prompt = made.prompt(from_messages(messages, None, "", predicting=True)).text
    assert item.text[: item.spans[-1][0]] == prompt


@pytest.mark.parametrize("name", sorted(END))
def test_the_three_ways_find_the_same_spans(tokenizer: Any, name: str) -> None:
    made, template = renderer(tokenizer, name), choose_template(name, tokenizer)
    assert template is not None
    by_prefixes = AnswerSpans(FilledTemplate(template, tokenizer), TurnEnd(tokenizer))
    dice = random.Random(0)
    words = ["Hi", "user", "assistant", " a ", "\n", "é☃", "the answer", "[x]", "Hello", ".", "<b>"]
    compared = 0
    for _ in range(40):
        contents = ["".join(dice.choices(words, k=dice.randint(1, 5))).strip() or "x" for _ in range(4)]
        messages = conversation(turns(*contents, system=dice.choice([None, "Be the assistant"])))
        item = made.render(messages)
        answers = [number for number, message in enumerate(messages.messages) if message["role"] == "assistant"]
        assert by_prefixes.by_prefixes(messages, item.text, answers) == item.spans, contents
        compared += 1
    assert compared == 40


@pytest.mark.parametrize("name", sorted(END))
def test_equal_texts_in_several_turns_are_told_apart(tokenizer: Any, name: str) -> None:
    item = renderer(tokenizer, name).render(conversation(turns("same", "same", "same", "same", system="same")))
    assert len(item.spans) == 2
    assert all("same" in part for part in learnt(item))
    assert item.spans[0][1] <= item.spans[1][0]


def test_generation_tags_are_used_and_the_end_of_turn_is_added(tokenizer: Any) -> None:
    made = renderer(tokenizer, ChatTemplate("own", TAGGED))
    item = made.render(conversation(turns("Hi", "Hello.", "How?", "Fine.")))
    assert learnt(item) == ["Hello.<|im_end|>", "Fine.<|im_end|>"]
    assert made.prefix_rendered == 0


def test_tags_that_hold_the_end_of_turn_are_left_as_they_are(tokenizer: Any) -> None:
    inside = TAGGED.replace("{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",
                            "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}")  # fmt: skip
    item = renderer(tokenizer, ChatTemplate("own", inside)).render(conversation(turns("Hi", "Hello.")))
    assert learnt(item) == ["Hello.<|im_end|>"]


def test_train_on_and_flags(tokenizer: Any) -> None:
    messages = turns("Hi", "one", "and", "two", "so", "three")
    assert learnt(renderer(tokenizer, "chatml", "last_turn").render(conversation(messages))) == ["three<|im_end|>"]
    messages[3]["train"] = False
    assert learnt(renderer(tokenizer, "chatml").render(conversation(messages))) == ["one<|im_end|>", "three<|im_end|>"]
    everything = learnt(renderer(tokenizer, "chatml", "all").render(conversation(messages)))
    assert "".join(everything) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>user\nand<|im_end|>\n"
        "<|im_start|>assistant\n\n<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\nthree<|im_end|>\n"
    )
    messages[1]["weight"] = 1
    chosen = renderer(tokenizer, "chatml", "last_turn").render(conversation(messages))
    assert learnt(chosen) == ["one<|im_end|>", "three<|im_end|>"]


def test_qwen3_drops_old_thoughts_and_learns_the_last_one(tokenizer: Any) -> None:
    messages = turns("Hi", "<think>\nhm\n</think>\n\nHello.", "How?", "<think>\nso so\n</think>\n\nFine.")
    item = renderer(tokenizer, "qwen3").render(conversation(messages))
    assert learnt(item) == ["Hello.<|im_end|>", "<think>\nso so\n</think>\n\nFine.<|im_end|>"]
    assert "hm" not in item.text


def test_tool_calls_and_results(tokenizer: Any) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ]
    item = renderer(tokenizer, "qwen2.5").render(conversation(messages, [tool]))
    assert learnt(item) == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
        "It is 2.<|im_end|>",
    ]
    assert '"name": "add", "parameters"' in item.text


def test_a_template_without_an_end_of_turn_gets_eos(tokenizer: Any) -> None:
    bare = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    item = renderer(tokenizer, ChatTemplate("own", bare)).render(conversation(turns("Hi", "Hello.")))
    assert learnt(item) == ["Hello."] and item.close


def test_a_template_that_moves_things_around_falls_back_to_the_text_itself(tokenizer: Any) -> None:
    # the count of messages stands in front, so that no rendered prefix is a prefix of the whole
    odd = (
        "{{ messages | length }}{% for m in messages %}"
        "{{ '<|' + m.role + '|>' + m.content | upper + '<|end|>' }}{% endfor %}"
    )
    made = renderer(tokenizer, ChatTemplate("own", odd))
    item = made.render(conversation(turns("HI", "HELLO.")))
    assert learnt(item) == ["HELLO.<|end|>"] and made.prefix_rendered == 1
    with pytest.raises(RowError, match="message 2 cannot be found"):
        made.render(conversation(turns("hi", "hello.")))


def test_what_a_template_refuses_is_an_error_of_the_row(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    with pytest.raises(RowError, match="refuses roles user tool assistant: only system, user and assistant"):
        renderer(tokenizer, "gemma").render(conversation(messages))


def test_choosing_a_template(tokenizer: Any, tmp_path: Any) -> None:
    assert choose_template(None, tokenizer) is None
    tokenizer.chat_template = TAGGED
    chosen = choose_template(None, tokenizer)
    assert chosen is not None and chosen.name == "tokenizer" and chosen.has_tags
    assert choose_template("none", tokenizer) is None
    path = tmp_path / "mine.jinja"
    path.write_text(TAGGED, encoding="utf-8")
    assert choose_template(str(path), tokenizer) == ChatTemplate(str(path), TAGGED)
    path.write_text("{% for %}", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.jinja:1.*not a Jinja template"):
        choose_template(str(path), tokenizer)
    with pytest.raises(UserError, match="did you mean chatml"):
        choose_template("chatlm", tokenizer)


def test_plain_conversations(tokenizer: Any) -> None:
    item = plain_text(conversation(turns("Hi", "Hello.", "How?", "Fine.", system="Be kind.")), "completions", "</s>")
    assert item.text == "Be kind.\n\nUser: Hi\nAssistant: Hello.</s>\nUser: How?\nAssistant: Fine."
    assert learnt(item) == [" Hello.</s>", " Fine."] and item.close and item.whole
    asked = plain_text(conversation(turns("Hi")), "completions", "</s>", predicting=True)
    assert asked.text == "User: Hi\nAssistant:"
    single = plain_text(Conversation.single("2+2=", "4"), "completions", "</s>")
    assert single.text == "2+2=4" and learnt(single) == ["4"]
    alpaca = plain_text(Conversation.alpaca("Add.", "1 2", "3"), "completions", "</s>")
    assert alpaca.text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3")
    assert learnt(alpaca) == ["3"]
    with pytest.raises(RowError, match="tools need a chat template"):
        plain_text(conversation(turns("Hi", "Ho"), [{"type": "function"}]), "completions", "")
