"""A chat: the answers of every kind of model, in the words of its training, and what its commands do."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from peftcli.console.chat.chat_commands import ChatCommands
from peftcli.console.chat.chat_screen import answer_lines
from peftcli.errors import UserError
from peftcli.inference.chat.chat_models import find_targets
from peftcli.inference.chat.chat_prompt import PromptMaker, Round
from peftcli.inference.chat.chat_session import Answer, Chat, ChatSettings
from peftcli.inference.open_run import Opening
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.tasks.decoding import Decoding, OnText
from peftcli.training.run import train
from tests.recipes import chat_rows, write_jsonl

METHODS = ["lora", "prefix_tuning", "prompt_tuning", "adapter", "bitfit", "full", "qlora"]
TURNS = [[{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
         for row in chat_rows(8)]  # fmt: skip
MESSAGES = [{"messages": turns} for turns in TURNS]


TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
"""Short, for models that place 64 tokens."""


def nothing(_piece: str) -> None: ...


def chat_with(*paths: object, checkpoint: str | None = None, **settings: Any) -> Chat:
    models = find_targets([Path(str(path)) for path in paths], None, checkpoint, trust_code=False)
    return Chat(models, ChatSettings(**{"max_new_tokens": 6, **settings}))


@pytest.fixture
def trained(recipe, tmp_path):
    template = tmp_path / "short.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")

    def make(
        family: str = "llama", method: str = "lora", name: str = "run", rows: Any = MESSAGES, **changes: Any
    ) -> str:
        block = {"name": method, **({"r": 4} if method == "lora" else {})}
        more = {"training__learning_rate": 0.05, "training__max_steps": 3, **changes}
        more = {"data__chat_template": str(template), **more}
        loaded = recipe(family, "causal_lm", rows, name=name, method=block, **more)
        train(loaded)
        return str(loaded.recipe.output_dir)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_what_predict_says(trained, tmp_path, method) -> None:
    run = trained("gpt2" if method == "bitfit" else "llama", method)
    question = "cat"
    file = write_jsonl(tmp_path / "in.jsonl", [{"messages": [{"role": "user", "content": question}]}])
    (line,) = predict_run(run, str(file), opening=Opening(max_new_tokens=6))
    pieces: list[str] = []
    answer = chat_with(run).ask(question, pieces.append)
    assert answer.text == line["prediction"]
    assert "".join(pieces) == answer.text
    assert answer.finish_reason == line["finish_reason"]


def test_turns_are_put_into_the_template_of_the_run(trained) -> None:
    run = trained("llama")
    chat = chat_with(run, system="be brief")
    maker = PromptMaker(chat.models.use(chat.name))
    rounds = [Round("the cat", "on mat"), Round("the dog")]
    row = maker.prompt(rounds, "be brief", 4).row
    expected = "s:be brief\nu:the cat\na:on mat\nu:the dog\na:"
    tokenizer = chat.models.use(chat.name).tokenizer
    assert row.input_ids.tolist() == tokenizer(expected, add_special_tokens=False)["input_ids"]
    chat.ask("the cat", nothing)
    chat.ask("the dog", nothing)
    assert [each.asked for each in chat.rounds] == ["the cat", "the dog"]


def test_the_oldest_rounds_make_room_and_one_that_is_too_long_is_refused(trained) -> None:
    chat = chat_with(trained("gpt2", rows=chat_rows(8), data__max_length=32))
    maker = PromptMaker(chat.models.use(chat.name))
    maker.keeps_rounds = True
    rounds = [Round("the cat and " * 4, "on mat"), Round("the dog and " * 4, "on mat"), Round("the house")]
    assert maker.prompt(rounds[2:], None, 4).left_out == 0
    made = maker.prompt(rounds, None, 4)
    assert 0 < made.left_out < 3
    assert len(made.row.input_ids) + 4 <= maker.longest
    with pytest.raises(UserError, match=r"this turn has .* tokens"):
        chat.ask("the cat and " * 60, nothing)
    assert chat.rounds == []


def test_base_and_adapters_take_turns_on_one_base(trained) -> None:
    first, second = (
        trained("llama", name="first"),
        trained("llama", "ia3", name="second", training__learning_rate=0.5),
    )
    chat = chat_with(first, second)
    untouched = chat_with(Path(first).parent.parent / "first.yaml")
    ours = chat.ask("the cat", nothing)
    base = chat.ask_base(nothing)
    assert base.text == untouched.ask("the cat", nothing).text
    chat.reset()
    chat.switch("second")
    other = chat.ask("the cat", nothing)
    assert len({ours.text, base.text, other.text}) > 1
    chat.reset()
    chat.switch("first")
    assert chat.ask("the cat", nothing) == ours
    with pytest.raises(UserError, match="choose from: first, second"):
        chat.switch("third")
    with pytest.raises(UserError, match="no adapter"):
        untouched.ask_base(nothing)


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(trained, models, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(models("gpt2"), other)
    chat = chat_with(trained("llama", name="first"), trained("gpt2", name="second", model=other))
    answer = chat.ask("the cat", nothing)
    shutil.rmtree(other)
    with pytest.raises(UserError):
        chat.switch("second")
    chat.reset()
    assert chat.name == "first" and chat.ask("the cat", nothing) == answer


def test_in_a_pipe_an_interrupt_is_for_the_program(trained) -> None:
    class Interrupted(Chat):
        def ask(self, text: str, on_text: OnText) -> Answer:
            return Answer("the", "interrupted")

    chat = Interrupted(chat_with(trained("llama")).models)
    with pytest.raises(KeyboardInterrupt):
        answer_lines(chat, ["the cat", "the dog"], as_json=False)


def test_an_interrupt_ends_the_answer_and_not_the_chat(trained) -> None:
    chat = chat_with(trained("llama", training__learning_rate=1e-5), max_new_tokens=30)
    pieces: list[str] = []
    whole = chat.ask("the cat", pieces.append)
    assert len(pieces) > 1
    chat.reset()

    def press(_piece: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    cut = chat.ask("the cat", press)
    assert cut.finish_reason == "interrupted"
    assert cut.text and whole.text.startswith(cut.text) and len(cut.text) < len(whole.text)
    assert chat.rounds == [Round("the cat", cut.text)]
    assert chat.ask("the dog", nothing).finish_reason in ("length", "stop")


def test_sampling_depends_on_its_seed(trained) -> None:
    chat = chat_with(trained("llama"), max_new_tokens=16, decoding=Decoding(temperature=5.0, top_p=0.99, top_k=100))
    texts = []
    for seed in (0, 0, 1):
        chat.reset()
        chat.settings.seed = seed
        texts.append(chat.ask("the cat", nothing).text)
    assert texts[0] == texts[1] != texts[2]
    for wrong in ({"top_p": 0.5}, {"top_k": 3}, {"temperature": 1.0, "num_beams": 2}):
        with pytest.raises(UserError):
            Decoding(**wrong)


def test_a_merged_directory_and_a_checkpoint(trained, tmp_path) -> None:
    run = trained("llama", training__save_steps=1)
    answer = chat_with(run).ask("the cat", nothing)
    merged = tmp_path / "merged"
    merge_run(run, merged)
    asked = chat_with(merged)
    asked.name = "merged"
    assert chat_with(run, checkpoint="last").ask("the cat", nothing) == answer
    plain = PromptMaker(asked.models.use("merged"))
    assert plain.stop_ids
    with pytest.raises(UserError, match="--checkpoint is for a run"):
        chat_with(merged, checkpoint="last")


@pytest.mark.parametrize("more", [{}, {"data__template": "Q: {prompt} A:"}])
def test_a_merged_model_is_asked_as_its_run_is(trained, tmp_path, more: dict[str, str]) -> None:
    run = trained("llama", rows=chat_rows(8), training__max_steps=1, data__chat_template="none", **more)
    merge_run(run, tmp_path / "merged")
    makers = [PromptMaker(chat.models.use(chat.name)) for chat in (chat_with(run), chat_with(tmp_path / "merged"))]
    rounds = [Round("the cat", "sat"), Round("the dog")]
    ids = [maker.prompt(rounds, None, 4).row.input_ids.tolist() for maker in makers]
    assert ids[0] == ids[1] and makers[0].notes() == makers[1].notes() != []


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"prompt": "cat", "completion": " sat"}, "be brief\n\ncat"),
        ({"prompt": "cat", "completion": " sat", "system": "be brief"}, "be brief\n\nUser: cat\nAssistant:"),
        ({"prompt": turn("user", "cat"), "completion": turn("assistant", "sat")},
         "be brief\n\nUser: cat\nAssistant:"),
        ({"prompt": "cat", "chosen": " sat", "rejected": " ran"}, "be brief\n\ncat"),
        ({"prompt": turn("user", "cat"), "chosen": turn("assistant", "sat"), "rejected": turn("assistant", "ran")},
         "be brief\n\nUser: cat\nAssistant:"),
        ({"prompt": "cat", "completion": " sat", "label": True}, "be brief\n\ncat"),
    ],
)  # fmt: skip
def test_without_a_template_turns_are_as_the_rows_were(recipe, row: dict[str, Any], asked: str) -> None:
    """A run and the recipe's base: texts of preferences, and a recipe's, became dialogues; messages became texts."""
    task = "preference" if {"chosen", "label"} & row.keys() else "causal_lm"
    loss = {"training__loss_type": "kto", "training__per_device_train_batch_size": 4} if "label" in row else {}
    rows = [row, {**row, "label": False}] * 2 if "label" in row else [row] * 4
    loaded = recipe("llama", task, rows, training__max_steps=1, data__chat_template="none", **loss)
    train(loaded)
    for path in (loaded.recipe.output_dir, loaded.path):
        chat = chat_with(path)
        run = chat.models.use(chat.name)
        maker = PromptMaker(run)
        ids = maker.prompt([Round("cat")], "be brief", 4).row.input_ids
        assert run.tokenizer.decode(ids) == asked
        assert maker.keeps_rounds == ("User" in asked) == (not maker.notes())


def test_what_cannot_be_talked_to(recipe, tmp_path, models) -> None:
    loaded = recipe("bert", "sequence_classification")
    train(loaded)
    run = loaded.recipe.output_dir
    with pytest.raises(UserError, match=r"sequence_classification(.|\n)*peft predict"):
        chat_with(run)
    merge_run(run, tmp_path / "merged")
    with pytest.raises(UserError, match=r"cannot do causal_lm|is a model for sequence_classification"):
        chat_with(tmp_path / "merged")
    with pytest.raises(UserError, match="no run, model directory or recipe"):
        chat_with(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        chat_with(tmp_path / "empty")


def test_commands(trained) -> None:
    chat = chat_with(trained("llama"))
    commands = ChatCommands(chat)
    chat.ask("the cat", nothing)
    assert "new conversation" in commands.run("/system be brief")[0]
    assert chat.rounds == [] and chat.settings.system == "be brief"
    commands.run("/system")
    assert chat.settings.system is None
    assert commands.run("/adapter") == ["* run"]
    commands.run("/set temperature 0.5")
    commands.run("/set top_p 0.9")
    assert chat.settings.decoding == Decoding(temperature=0.5, top_p=0.9)
    assert "greedy" in commands.run("/set temperature 0")[0]
    assert commands.run("/set max_new_tokens 3") and chat.settings.max_new_tokens == 3
    for wrong, said in (("/sytem x", "/system"), ("/set top_p 2", "from"), ("/set colour red", "choose from"),
                        ("/set top_p 0.5", "sampling"), ("/set seed x", "a number")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            commands.run(wrong)
    assert any("/base" in line for line in commands.run("/help"))
