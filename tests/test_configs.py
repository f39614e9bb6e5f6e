"""Every shipped small recipe trains as it stands, for a few steps; together they cover every method."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from peftcli.protocol.registry import registry
from tests.command_line import Cli

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def test_every_method_has_a_config() -> None:
    named = [yaml.safe_load(file.read_text(encoding="utf-8"))["method"]["name"] for file in CONFIGS]
    assert sorted(named) == sorted(registry.names())
    assert [file.stem for file in CONFIGS] == named


@pytest.mark.parametrize(
    "config",
    [pytest.param(file, marks=[pytest.mark.core] if file.stem == "lora" else [], id=file.stem) for file in CONFIGS],
)
def test_config_trains_for_a_few_steps(cli: Cli, tmp_path: Path, config: Path) -> None:
    few = ["training.max_steps=3", "data.max_rows=40", "data.val_set_size=10", "training.per_device_train_batch_size=8"]
    if registry.info(config.stem).name == "adalora":
        few += ["method.tinit=1", "method.tfinal=1"]  # its phases must fit the run
    done = cli("train", config, "-o", tmp_path / "run", *few, "--json", "--quiet")
    assert done.code == 0, done.err
    summary = done.json
    assert summary["steps"] == 3 and summary["trainable"] > 0
    assert math.isfinite(summary["train_loss"]) and math.isfinite(summary["eval"]["eval_loss"])
    evaluated = cli("eval", tmp_path / "run", "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["eval_loss"] == pytest.approx(summary["eval"]["eval_loss"], rel=1e-4)


def test_count_params_compares_all_configs(cli: Cli) -> None:
    done = cli("count-params", *CONFIGS, "--json")
    assert done.code == 0, done.err
    rows = {row["method"]: row for row in done.json}
    assert set(rows) == set(registry.names())
    assert rows["full"]["percent"] == pytest.approx(100)
    assert all(row["percent"] < 30 for name, row in rows.items() if name not in ("full", "freeze"))


def test_the_config_of_preferences_trains_on_its_pairs(cli: Cli, models: Callable[[str], Path], tmp_path: Path) -> None:
    """With a tiny model in place of the hub's; its rows lie beside it."""
    (config,) = sorted((CONFIGS[0].parent / "preference").glob("*.yaml"))
    changes = [f"model.name_or_path={models('llama')}", "training.max_steps=2"]
    rows = config.parent / "pairs.jsonl"
    done = cli("train", config, *changes, f"data.path={rows}", "-o", tmp_path / "run", "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.json["steps"] == 2 and math.isfinite(done.json["eval"]["eval_rewards_margins"])
