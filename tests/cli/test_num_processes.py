"""`--num-processes` of eval, predict and merge: the same command in several processes, and one of them prints."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from peftcli.distributed import launching
from peftcli.training.run import train
from tests.recipes import chat_rows

USES: dict[str, list[str]] = {
    "eval": ["run", "--data", "rows.jsonl", "--max-new-tokens", "3", "--base-dtype", "float32", "--checkpoint", "last",
             "--trust-remote-code", "--json"],
    "predict": ["run", "other", "--input", "rows.jsonl", "--output", "out.jsonl", "--max-new-tokens", "3",
                "--base-dtype", "float32", "--checkpoint", "last", "--trust-remote-code", "--temperature", "0.7",
                "--top-p", "0.9", "--top-k", "5", "--seed", "3", "--batch-size", "2", "--keep-columns"],
    "merge": ["run", "other", "--output", "merged", "--dtype", "float16", "--base", "gpt2", "--max-shard-size", "1GB",
              "--no-verify", "--checkpoint", "last", "--trust-remote-code", "--quiet", "--json",
              "--weights", "0.5,0.5", "--rank", "4"],
}  # fmt: skip
"""Commands with every argument that goes with the others."""


@pytest.mark.parametrize("command", USES)
def test_the_processes_run_the_command_that_was_typed(cli, monkeypatch, command: str) -> None:
    started: list[Any] = []
    monkeypatch.setattr(launching, "launch", lambda words, number, **_: started.append((words, number)) or 0)
    typed = USES[command]
    assert cli(command, *typed, "--num-processes", 3).code == 0
    ((words, number),) = started
    assert number == 3 and words[words.index(command) :] == [command, *typed]


def test_two_processes_predict_standard_input_and_print_once(recipe, tmp_path, cli, monkeypatch) -> None:
    loaded = recipe(training__max_steps=2, training__max_new_tokens=4)
    train(loaded)
    rows = "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in chat_rows(5))
    found = []
    for words in ((), ("--num-processes", 2)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
        done = cli("predict", loaded.recipe.output_dir, "--input", "-", *words)
        assert done.code == 0, done.err
        found.append([json.loads(line)["prediction"] for line in done.out.splitlines()])
    assert len(found[0]) == 5 and found[1] == found[0]


def test_standard_input_of_a_launcher_is_refused(cli, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = cli("predict", "run", "--input", "-")
    assert done.code == 2 and "several processes cannot read one standard input" in done.err
