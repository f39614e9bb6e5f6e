"""The worked example in CONTRIBUTING.md is a method: it trains, counts, merges and fits, from outside the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from peftcli.protocol import registry as registry_module
from tests.command_line import Cli, Workspace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the example as a package of its own, as pip would: a module and its metadata on the path."""
    (body,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
    (entry,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "gain_method.py").write_text(body, encoding="utf-8")
    metadata = tmp_path / "gain_method-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gain-method\nVersion: 1.0\n", encoding="utf-8")
    points = entry.replace('[project.entry-points."peftcli.methods"]', "[peftcli.methods]").replace('"', "")
    (metadata / "entry_points.txt").write_text(points, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry_module._find.cache_clear()
    yield
    registry_module._find.cache_clear()


def test_the_worked_example_works(cli: Cli, workspace: Workspace, plugin: None) -> None:
    method = {"name": "gain", "target_modules": ["attn.v", "ffn.up", "ffn.down"]}
    recipe = workspace.recipe("gain", method=method, training__learning_rate=0.05)
    done = cli("train", recipe, "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.json["eval"]["eval_loss"] != done.json["eval_before"]["eval_loss"]  # a tiny random model learns little
    run = workspace.run("gain")
    evaluated = cli("eval", run, "--json")
    assert evaluated.json["eval_loss"] == pytest.approx(done.json["eval"]["eval_loss"], abs=1e-6)
    merged = cli("merge", run, "-o", workspace.path / "gain-merged", "--json")
    assert merged.code == 0, merged.err
    assert merged.json["verified"] is True
    (counted,) = cli("count-params", recipe, "--json").json
    assert counted["saved"] == done.json["saved"] == 2 * (32 + 48 + 32)
    assert json.loads((run / "summary.json").read_text())["method"] == "gain"
    assert "a factor for each output feature" in cli("methods", "gain").out


def test_without_the_plug_in_the_name_is_unknown(cli: Cli) -> None:
    assert cli("methods", "gain").code == 2
