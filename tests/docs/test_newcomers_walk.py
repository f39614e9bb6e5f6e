"""A newcomer with a file of conversations goes by README alone: from `peft init` to an answer in llama.cpp.

The commands are those of the page, in its order, with a tiny model in the place of `M`. vLLM reads what the last one
writes in tests/serving/test_vllm.py.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.command_line import Cli
from tests.docs.pages import commands
from tests.serving.served_models import byte_tokenizer, save_served

QUESTIONS = ["Who sat on the mat?", "Who ran to the house?", "How many times?"]


def walk() -> list[list[str]]:
    """Return the commands of README from `peft init` to the last export."""
    every = commands("README.md")
    first = next(n for n, words in enumerate(every) if words[0] == "init" and "chat.jsonl" in words)
    after = every[first:]
    return after[: 1 + max(n for n, words in enumerate(after) if words[0] == "export" and "--to" in words)]


def test_the_walk_has_its_stations() -> None:
    words = walk()
    assert [station[0] for station in words] == ["init", "train", "chat", "export", "export", "export"]
    assert [station[-1] for station in words[3:]] == ["gguf", "ollama", "vllm"]


def test_readme_leads_from_conversations_to_answers(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    save_served(tmp_path / "model", "llama", byte_tokenizer())
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"The cat, {n} times."}]}
        for n, question in enumerate(QUESTIONS * 8)
    ]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for words in walk():
        given = ["model" if word == "M" else word for word in words]
        if words[0] == "chat":
            monkeypatch.setattr("sys.stdin", io.StringIO(QUESTIONS[0] + "\n"))
            given += ["--max-new-tokens", "8"]
        done = cli(*given)
        assert done.code == 0, (words, done.err)
        if words[0] == "train":
            assert "peft chat runs/chat" in done.out  # what to type next
        if words[0] == "chat":
            assert len(done.out.splitlines()) == 1
        if words[-1] == "vllm":
            assert "vllm serve" in done.out
    assert Path("served/model-f16.gguf").is_file() and Path("ollama/Modelfile").is_file()
    assert Path("chat-lora/adapter_model.safetensors").is_file()
    _answers_in_llama_cpp(Path("served/model-f16.gguf"))


def _answers_in_llama_cpp(model: Path) -> None:
    """Ask llama.cpp with its own rendering of the model's chat template."""
    pytest.importorskip("xllamacpp", reason="has no wheel for this machine")
    from tests.serving.test_llama_cpp import ask, serve

    server = serve(model)
    question = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 4, "temperature": 0}
    answer = ask(server, "/v1/chat/completions", question)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] >= 1
