"""The table of model types says what is so: twelve types are tried again here, and all where `slow` is asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import transformers

from peftcli.analysis.support.tiny_types import model_types, tiny_type
from peftcli.analysis.support.trials import moved_effects, try_type
from peftcli.analysis.support.tried_types import CELLS, TASKS_TRIED, TRIED, faults, read_tried, without_whole
from peftcli.errors import UserError
from peftcli.process_state import quiet_transformers
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import TaskName
from tests.command_line import Cli

SAMPLE: dict[str, TaskName] = dict.fromkeys(
    [
        "bamba",
        "blt",
        "camembert",
        "cohere2",
        "ctrl",
        "deepseek_v3",
        "falcon_h1",
        "gemma2",
        "glm4",
        "gpt2",
        "gpt_oss",
        "llama",
    ],
    "causal_lm",
)
METHODS = ["lora", "adapter", "prefix_tuning", "prompt_tuning", "bitfit"]
"""Those that reach different things: linears, branches, attention, embeddings, values of the base."""


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without numbers that differ from one machine to the next."""
    methods = {
        name: {what: re.sub(r"\d\.\de[-+]\d+", "X", text) for what, text in cells.items()}
        for name, cells in without_whole(record)["methods"].items()
        if name in METHODS
    }
    return {**{key: value for key, value in record.items() if key != "moved"}, "methods": methods}


@pytest.mark.parametrize("name", SAMPLE)
def test_what_the_table_says_of_a_type_is_what_is_found(name: str) -> None:
    stored = read_tried().record(name, SAMPLE[name])
    assert stored is not None
    with quiet_transformers():
        assert plain(try_type(name, SAMPLE[name], METHODS)) == plain(stored)


@pytest.mark.parametrize("name", ["openai-gpt", "mamba", "minimax", "qwen3_5"])
def test_interventions_reach_lists_of_outputs_and_go_on_from_a_state(name: str) -> None:
    """MiniMax's first layer counts no tokens in its cache; Qwen3.5 places tokens by several axes."""
    with quiet_transformers():
        cells = try_type(name, "causal_lm", ["loreft"])["methods"]["loreft"]
    assert set(cells.values()) == {TRIED}, cells


def test_streams_of_states_ids_within_blocks_and_a_grouped_projection() -> None:
    """DeepSeek V4: no one hidden state to edit, a router that looks ids up, a linear with a forward of its own."""
    with quiet_transformers():
        methods = try_type("deepseek_v4", "causal_lm", ["loreft", "prompt_tuning", "qlora"])["methods"]
    assert "not one hidden state of each token" in methods.pop("loreft")["attach"]
    assert {text for cells in methods.values() for text in cells.values()} == {TRIED}, methods


@pytest.mark.parametrize(
    ("name", "task", "methods"),
    [
        ("zamba", "causal_lm", ["qlora", "ia3", "ln_tuning"]),
        ("trocr", "causal_lm", ["ia3", "adapter"]),
        ("mllama", "causal_lm", ["ia3", "adapter", "loreft", "prefix_tuning"]),
        ("big_bird", "sequence_classification", ["bitfit", "full"]),
        ("modernvbert", "token_classification", ["lora", "adapter"]),
        ("switch_transformers", "seq2seq_lm", ["mam"]),
        ("prophetnet", "seq2seq_lm", ["prompt_tuning"]),
        ("t5", "token_classification", ["prompt_tuning"]),
        ("t5gemma", "token_classification", ["prompt_tuning"]),
        ("mobilebert", "sequence_classification", ["unipelt"]),
        ("mra", "sequence_classification", ["adapter"]),
        ("mra", "token_classification", ["prompt_tuning"]),
        ("xmod", "token_classification", ["qlora", "bitfit", "full"]),
    ],
)
def test_tensors_of_several_blocks_and_what_text_does_not_reach(name: str, task: TaskName, methods: list[str]) -> None:
    """Zamba's blocks share an attention; TrOCR and Mllama attend to images; BigBird's loss needs no pooler.

    Switch keeps experts in a dictionary, ProphetNet's encoder has a name of its own for the table of tokens, T5 tags
    with its encoder alone, MobileBERT attends at the width of its blocks, MRA's attention is zero without its kernel,
    so that virtual tokens reach no other one; X-MOD has adapters for other languages than that of the texts.
    """
    with quiet_transformers():
        record = try_type(name, task, methods)
    found = {
        (method, what): text for method in methods for what, text in faults(record["methods"][method], record).items()
    }
    assert not found


@pytest.mark.parametrize("name", ["longt5", "pegasus_x", "bigbird_pegasus"])
def test_no_prefix_where_one_stack_computes_its_attention_itself(name: str) -> None:
    with quiet_transformers():
        cells = try_type(name, "seq2seq_lm", ["prefix_tuning"])["methods"]["prefix_tuning"]
    assert list(cells) == ["attach"] and "computes its attention in code of its own" in cells["attach"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("task", TASKS_TRIED)
def test_every_type_is_what_the_table_says(task: TaskName) -> None:
    tried = read_tried()
    assert transformers.__version__ == tried.transformers, "python docs/try_types.py, with this version"
    different = []
    with quiet_transformers():
        for name in model_types(task):
            stored = tried.record(name, task)
            if stored is not None and plain(try_type(name, task, METHODS)) != plain(stored):
                different.append(name)
    assert not different


def test_the_table_has_every_type_every_method_and_a_reason_for_each_hole() -> None:
    tried = read_tried()
    assert tried.methods == registry.names()
    if transformers.__version__ == tried.transformers:
        for task in TASKS_TRIED:
            found = [name for name, tasks in tried.types.items() if task in tasks]
            assert sorted([*found, *tried.untried[task]]) == model_types(task)
    for name, tasks in tried.types.items():
        for task, record in tasks.items():
            cells = [record["model"], *(text for found in record["methods"].values() for text in found.values())]
            vague = [text for text in cells if text != TRIED and not text.partition(": ")[2].strip()]
            assert not vague, (name, task)


def test_the_bare_models_own_faults_are_not_the_methods() -> None:
    wrong = {"padding": "wrong: padding changes the outputs by 1.0e-02", "merge": "wrong: differs by 1.0e-02"}
    cells = dict.fromkeys(CELLS, TRIED) | wrong
    assert list(faults(cells, {"padding": "wrong: differs by 3.0e-03"})) == ["merge"]
    assert list(faults(cells, {"padding": TRIED})) == ["padding", "merge"]
    assert list(faults(cells, {"padding": TRIED, "moved": {"padding": 3e-3}})) == ["merge"]  # with other values


def test_a_method_that_is_much_worse_than_its_base_has_a_fault_of_its_own() -> None:
    cells = {"padding": "wrong: padding changes the outputs by 1.0e-01", "cache": "wrong: KeyError: x"}
    bare = {"padding": "wrong: differs by 3.0e-03", "cache": "wrong: differs by 1.0e+00"}
    assert list(faults(cells, bare)) == ["padding", "cache"]  # an error is none of a base that generates
    moved = {"padding": TRIED, "methods": {"full": {"padding": "wrong: padding changes the outputs by 1.0e-01"}}}
    assert list(faults(cells, moved)) == ["padding", "cache"]  # what another method finds says nothing of the base


@pytest.mark.parametrize(
    ("name", "task", "what"),
    [("convbert", "sequence_classification", "padding"), ("fsmt", "seq2seq_lm", "cache")],
)
def test_the_bare_model_is_measured_with_other_values_where_a_method_was_wrong(
    name: str, task: TaskName, what: str
) -> None:
    with quiet_transformers():
        kind = tiny_type(name, task)
        assert moved_effects(kind, {"lora": {what: TRIED}}) == {}
        assert moved_effects(kind, {"lora": {what: "wrong: by 1.0e-02"}})["moved"][what] > 2e-4


def test_a_type_that_cannot_be_built_says_why() -> None:
    with pytest.raises(UserError, match="no tiny vit could be built"):
        tiny_type("vit", "causal_lm")


def test_peft_methods_says_what_was_tried(cli: Cli, tmp_path: Any) -> None:
    with quiet_transformers():
        tiny_type("llama", "causal_lm").made_config().save_pretrained(tmp_path)
    rows = cli("methods", "--model", tmp_path, "--json").json
    stored = read_tried()
    for row in rows:
        assert row["tried"]["cells"] == stored.cells("llama", "causal_lm", row["name"])
    shown = cli("methods", "--model", tmp_path).out
    assert f"with transformers {stored.transformers}" in " ".join(shown.split())
