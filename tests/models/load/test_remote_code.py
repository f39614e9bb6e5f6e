"""A directory with Python code of its own: loaded only where `trust_remote_code` says so, for every use."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.training.run import train
from tests.tiny import save_tiny

CONFIG = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from transformers import dynamic_module_utils

    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    path = [entry for entry in sys.path if not (Path(entry) / "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", path)  # without the caches of earlier tests
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = save_tiny(tmp_path / "own", "llama")
    (base / "configuration_own.py").write_text(CONFIG)
    (base / "modeling_own.py").write_text(MODEL)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"],
               "auto_map": {"AutoConfig": "configuration_own.OwnConfig",
                            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    return base


def test_own_code_trains_and_evaluates_where_it_is_trusted(own: Path, recipe) -> None:
    loaded = recipe(model=own, name="own", data__val_set_size=4, training__max_steps=1, model__trust_remote_code=True)
    done = train(loaded)
    assert evaluate_run(loaded.recipe.output_dir)["eval_loss"] == pytest.approx(done.eval["eval_loss"])


def test_own_code_is_refused_by_default(own: Path, recipe) -> None:
    with pytest.raises(UserError, match="comes with Python code of its own"):
        train(recipe(model=own, name="own", training__max_steps=1))
