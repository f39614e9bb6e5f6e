"""What the README promises of its first command, from the recipe to the accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Cli

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "lora.yaml"


@pytest.mark.timeout(900)  # a minute of two idle cores
def test_the_demo_learns_to_sort_the_news(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", CONFIG, "-o", tmp_path / "run", "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.json["eval_before"]["eval_accuracy"] < 0.5  # chance is 0.2; the head starts at random
    assert done.json["eval"]["eval_accuracy"] >= 0.94
    assert done.json["trainable"] < 0.005 * done.json["total"]
