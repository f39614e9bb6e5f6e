"""`peft methods`, and the texts it shows of types and defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peftcli.cli.methods import type_text
from peftcli.protocol.registry import registry
from tests.command_line import Cli, Workspace
from tests.docs.worked_example import WritePlugin
from tests.models.stored_bases import write_config
from tests.tiny import tiny_config


def test_lists_every_method(cli: Cli) -> None:
    done = cli("methods", "--json")
    assert done.code == 0
    assert [row["name"] for row in done.json] == registry.names()
    for row in done.json:
        assert row["paper"] and row["summary"] and row["parameters"]
        assert all(parameter["description"] for parameter in row["parameters"]), row["name"]
    servers = {row["name"]: row["servers"] for row in done.json}
    assert servers["lora"].startswith("vllm, llama.cpp, hf peft with the adapter; after a merge")
    assert servers["prefix_tuning"] == "hf peft with the adapter; no other: it does not merge"
    assert servers["full"].startswith("all that load the base") and servers["compose"] is None
    text = cli("methods").out
    assert all(name in text for name in registry.names())


def test_shows_one_with_its_hyper_parameters(cli: Cli) -> None:
    done = cli("methods", "lora")
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert "int >= 1" in lines["r"]
    assert "none | all | lora_only" in lines["bias"]
    assert "[attn.q, attn.v]" in lines["target_modules"]


def test_says_which_fit_a_model(cli: Cli, workspace: Workspace) -> None:
    rows = {row["name"]: row for row in cli("methods", "--model", workspace.path / "llama", "--json").json}
    assert rows["lora"]["fits"] is True
    assert rows["bitfit"]["fits"] is False  # a Llama has no biases
    assert "bias" in " ".join(rows["bitfit"]["reasons"])


def test_a_task_that_does_not_exist_is_refused(cli: Cli, workspace: Workspace) -> None:
    done = cli("methods", "--model", workspace.path / "llama", "--task", "causal")
    assert done.code == 2 and "causal_lm" in done.err


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 1}, "int >= 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "float > 0, <= 1"),
        ({"enum": ["a", True, None]}, "a | true | null"),
        ({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}, "list of str or null"),
        ({"$ref": "#/$defs/Part"}, "block"),
    ],
)
def test_type_text(schema: dict[str, object], text: str) -> None:
    assert type_text(schema, {"Part": {"type": "object", "properties": {}}}) == text


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["--task", "causal_lm"], "--task causal_lm is the task for --model"),
        (["lora", "--check", "ia3"], "NAME lora has no effect"),
        (["--check", "ia3", "--model", "gpt2"], "--model gpt2 has no effect"),
        (["--check", "ia3", "--task", "causal_lm"], "--task causal_lm has no effect"),
        (["--model", ""], "--model is empty"),
    ],
)
def test_what_would_be_ignored_is_refused(typed: list[str], named: str, cli: Cli) -> None:
    done = cli("methods", *typed)
    assert done.code == 2 and named in done.err and not done.out


def test_brackets_in_a_summary_are_shown(cli: Cli, body: str, write_plugin: WritePlugin) -> None:
    (summary,) = re.findall(r'summary="([^"]*)"', body)
    write_plugin(body.replace(summary, "gains of [attn.q] and [/INST]"))
    done = cli("methods", "gain")
    assert done.code == 0 and "gain: gains of [attn.q] and [/INST]" in done.out


def test_a_stored_quantised_model_fits_the_methods_that_train_one(cli: Cli, tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    write_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    rows = {row["name"]: row for row in cli("methods", "--model", tmp_path, "--json").json}
    assert rows["lora"]["fits"] is True
    assert rows["full"]["fits"] is False and "stored quantised" in rows["full"]["reasons"][0]
    assert rows["qlora"]["fits"] is False and "stored quantised" in rows["qlora"]["reasons"][0]
