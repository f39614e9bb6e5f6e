"""Hyper-parameters that cannot work are refused with the limit, before weights load.

At `peft validate` where recipe and config.json suffice, otherwise by `peft train` once shapes or rows are known.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.training import setup
from tests.command_line import Cli
from tests.recipes import chat_rows, write_jsonl
from tests.tiny import tiny_config, tiny_tokenizer

RECIPE = """\
model: {name_or_path: base}
task: causal_lm
data: {path: rows.jsonl, val_set_size: 0, max_length: 32}
method:
METHOD
training: {max_steps: 20, per_device_train_batch_size: 4, device: cpu}
output_dir: run
"""

AT_VALIDATE = {
    "another method's": ("{name: lora, num_virtual_tokens: 4}", "num_virtual_tokens", "is a key of prefix_tuning"),
    "phm_dim": (
        "{name: compacter, bottleneck_size: 6, phm_dim: 4}",
        "bottleneck_size",
        "6 is not a multiple of phm_dim = 4; use 4 or 8",
    ),
    "phm_dim of the width": ("{name: compacter, bottleneck_size: 6, phm_dim: 3}", "phm_dim", "32"),
    "rank": ("{name: lora, r: 33}", "r", "largest useful rank is 32"),
    "first rank": ("{name: adalora, init_r: 33}", "init_r", "largest useful rank is 32"),
    "4-bit rank": ("{name: qlora, r: 33}", "r", "largest useful rank is 32"),
    "target above init": ("{name: adalora, init_r: 4, target_r: 8}", "target_r", "at most init_r = 4"),
    "phases": ("{name: adalora, tinit: 10, tfinal: 10}", "tinit", "10 + 10 = 20, but the run has 20 optimizer steps"),
    "one phase": ("{name: adalora, tfinal: 20}", "tfinal", "20 + 2 = 22, but the run has 20 optimizer steps"),
    "prefix": ("{name: prefix_tuning, num_virtual_tokens: 64}", "num_virtual_tokens", "64"),
    "prompt": ("{name: prompt_tuning, num_virtual_tokens: 64}", "num_virtual_tokens", "64"),
    "a part's rank": ("{name: compose, parts: [{name: lora, r: 33}]}", None, "largest useful rank is 32"),
    "a part's phases": (
        "{name: compose, parts: [{name: adalora, tinit: 10, tfinal: 10}]}",
        None,
        "the run has 20 optimizer steps",
    ),
    "a part's tokens": ("{name: mam, num_virtual_tokens: 64}", None, "64"),
    "a nested part's tokens": ("{name: unipelt, prefix: {num_virtual_tokens: 64}}", "prefix", "64"),
}
"""Method block, the key that is named, and words of the message."""

BEFORE_WEIGHTS = {
    "rank of a narrow matrix": ("{name: lora, r: 20, target_modules: [attn.k]}", "largest useful r is 16"),
    "first rank of a narrow matrix": (
        "{name: adalora, init_r: 20, target_modules: [attn.v]}",
        "at most 16",
    ),
    "no biases": ("{name: bitfit}", "use lora"),
    "phases of counted rows": ("{name: adalora, tinit: 5, tfinal: 5}", "but the run has 4 optimizer steps"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a config, a tokenizer and rows: no weights."""
    monkeypatch.chdir(tmp_path)
    tiny_config("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    write_jsonl(Path("rows.jsonl"), chat_rows(16))
    return tmp_path


@pytest.mark.parametrize("fault", AT_VALIDATE)
def test_validate_names_the_key_and_the_limit(place: Path, cli: Cli, fault: str) -> None:
    method, key, words = AT_VALIDATE[fault]
    (place / "recipe.yaml").write_text(RECIPE.replace("METHOD", f"  {method}"), encoding="utf-8")
    done = cli("validate", "recipe.yaml", "--json")
    assert done.code == 2
    (error,) = done.json["errors"]
    assert words in f"{error['message']} {error['suggestion']}"
    assert error["key"] == (f"method.{key}" if key else "method")
    assert (Path(error["file"]).name, error["line"]) == ("recipe.yaml", 5 if key else 4)


@pytest.mark.parametrize("fault", BEFORE_WEIGHTS)
def test_train_refuses_before_weights_load(
    place: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    def load_model(*_: object, **__: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(setup, "load_model", load_model)
    method, words = BEFORE_WEIGHTS[fault]
    recipe = RECIPE.replace("METHOD", f"  {method}").replace("max_steps: 20", "num_train_epochs: 1")
    (place / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert json.loads(cli("validate", "recipe.yaml", "--json").out)["valid"]
    done = cli("train", "recipe.yaml")
    assert done.code == 2, done.err
    assert words in " ".join(done.err.split())
    assert not (place / "run" / "summary.json").exists()
