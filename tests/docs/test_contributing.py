"""The worked example in CONTRIBUTING.md is a method: it trains, counts, merges and fits, from outside the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peftcli.protocol import registry as registry_module
from tests.command_line import Cli, Workspace


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


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def attach(model, anatomy, params): ...", "gain_method has no METHOD that is an instance of"),
        ("METHOD = object()", "gain_method has no METHOD that is an instance of"),
        ("import a_package_that_is_not_here", "cannot be imported: No module named 'a_package_that_is_not_here'"),
        (
            "from peftcli.protocol.method import Method\nclass Gain(Method): ...\nMETHOD = Gain()",
            "abstract class Gain",  # it has no attach
        ),
    ],
)
def test_a_plug_in_without_a_method_says_so(cli: Cli, plugin: None, reason: str) -> None:
    done = cli("methods", "gain")
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "the plug-in gain_method of the package gain-method 1.0, which offers the method 'gain'," in said
    assert reason in said


def test_a_plug_in_of_another_name_says_so(cli: Cli, plugin: None, body: str) -> None:
    registry_module._find.cache_clear()
    source = Path(sys.path[0], "gain_method.py")
    source.write_text(body.replace('name="gain"', 'name="other"'), encoding="utf-8")
    done = cli("methods", "gain")
    assert done.code == 2
    assert "calls itself 'other'" in " ".join(done.err.split())
