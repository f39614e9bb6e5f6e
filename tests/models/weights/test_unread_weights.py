"""A base that each process reads its own share of is the base that is loaded whole, and no process holds more."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.distributed.launching import launch
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.models.load.load_model import Loaded, load_model
from peftcli.recipe.schema import ModelSpec
from tests.tiny import save_tiny

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("llama", "causal_lm", "causal_lm", {}),
    "untied, rounded": ("llama", "causal_lm", "causal_lm", {"dtype": "bfloat16"}),
    "Conv1D, tied": ("gpt2", "causal_lm", "causal_lm", {}),
    "another prefix, a new head": ("bert", "masked_lm", "sequence_classification", {}),
    "one block, many times": ("albert", "sequence_classification", "sequence_classification", {}),
    "several tied tables": ("t5", "seq2seq_lm", "seq2seq_lm", {}),
    "buffers of the file": ("bart", "seq2seq_lm", "seq2seq_lm", {}),
    "experts that are joined": ("mixtral", "causal_lm", "causal_lm", {}),
    "experts, and a new head": ("qwen3_moe", "causal_lm", "sequence_classification", {"dtype": "bfloat16"}),
    "scaled embeddings": ("gemma3_text", "causal_lm", "causal_lm", {}),
    "fused projections": ("phi3", "causal_lm", "causal_lm", {}),
    "more tokens": ("gpt2", "causal_lm", "causal_lm", {"new_special_tokens": [f"<{n}>" for n in range(40)]}),
    "more tokens, untied": ("llama", "causal_lm", "causal_lm", {"new_special_tokens": [f"<{n}>" for n in range(40)]}),
}
"""Family, what the checkpoint is of, task, and the model block's other keys."""


def write(directory: Path, name: str) -> Path:
    family, stored, task, keys = CASES[name]
    save_tiny(directory, family, stored)
    (directory / "case.json").write_text(json.dumps({"task": task, "model": keys}))
    return directory


def shift_nan_into_last_row(directory: Path) -> None:
    """The last row of an embedding is the last process's alone."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][-1] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found, by case."""
    home = tmp_path_factory.mktemp("cases")
    for name in CASES:
        write(home / name, name)
    shift_nan_into_last_row(write(home / "broken", "llama"))
    assert launch([sys.executable, "-m", "tests.models.weights.shares_worker", str(home)], 2) == 0
    return [json.loads((home / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_read_what_one_reads_whole(found: list[dict[str, Any]], name: str) -> None:
    for process in found:
        case = process[name]
        assert case["same_names"]
        assert case["wrong"] == []
        assert case["notes"]
        assert case["logits"] < 1e-6
        assert 0.45 < case["share"] < 0.55


def test_every_process_says_that_one_of_them_read_no_number(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert "model.embed_tokens.weight (NaN)" in process["broken"]["error"]


def in_shares(directory: Path, task: str = "causal_lm", **changes: Any) -> Loaded:
    spec = ModelSpec(name_or_path=str(directory))
    return load_model(spec, task, seed=3, world=World(torch.device("cpu")), in_shares=True, **changes)


def filled(loaded: Loaded) -> dict[str, torch.Tensor]:
    assert loaded.unread is not None
    loaded.unread.fill(loaded.model, World(torch.device("cpu")))
    return dict(loaded.model.state_dict())


def test_until_it_is_filled_only_the_new_head_has_values(tmp_path: Path) -> None:
    loaded = in_shares(save_tiny(tmp_path, "bert", "masked_lm"), "sequence_classification")
    held = {name for name, parameter in loaded.model.named_parameters() if not parameter.is_meta}
    assert {name.split(".")[0] for name in held if "pooler" not in name} == {"classifier"}
    assert loaded.head_note is not None


@pytest.mark.parametrize("equal", [True, False])
def test_tied_tensors_that_are_stored_twice(tmp_path: Path, equal: bool) -> None:
    """transformers ties them if their values are equal, and only then."""
    file = save_tiny(tmp_path, "gpt2") / "model.safetensors"
    tensors = load_file(file)
    table = next(tensors[name] for name in tensors if name.endswith("wte.weight"))
    save_file({**tensors, "lm_head.weight": table + (0 if equal else 1)}, file, metadata={"format": "pt"})
    plain = load_model(ModelSpec(name_or_path=str(tmp_path)), "causal_lm").model
    loaded = in_shares(tmp_path)
    values = filled(loaded)
    assert all(torch.equal(value, values[name]) for name, value in plain.state_dict().items())
    for model in (plain, loaded.model):
        tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert (tables[0] is tables[1]) == equal


def test_a_checkpoint_that_lacks_weights_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    file = save_tiny(tmp_path, "llama") / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        in_shares(tmp_path)


def test_an_expert_is_read_by_the_process_that_has_it(tmp_path: Path) -> None:
    unread = in_shares(save_tiny(tmp_path, "mixtral")).unread
    assert unread is not None
    joined = next(filling for filling in unread.fillings if filling.name.endswith("gate_up_proj"))
    assert len(joined.sources) == 8  # two matrices of four experts
    own = joined.only(2, 3)
    assert own is not None
    assert [".experts.2." in source.name for _, source in own.sources] == [True, True]
