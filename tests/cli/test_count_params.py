"""How `--method NAME:key=value,...` is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.cli.count_params import method_overrides, split_outside_brackets


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("r=8", ["r=8"]),
        ("r=8, lora_alpha=16,", ["r=8", "lora_alpha=16"]),
        ("target_modules=[attn.q,attn.v],r=8", ["target_modules=[attn.q,attn.v]", "r=8"]),
        ("rank_pattern={a: 1, b: [2,3]},r=8", ["rank_pattern={a: 1, b: [2,3]}", "r=8"]),
        ("target_modules='a,b',r=8", ["target_modules='a,b'", "r=8"]),
    ],
)
def test_split_outside_brackets(text: str, parts: list[str]) -> None:
    assert split_outside_brackets(text) == parts


def test_method_overrides() -> None:
    assert method_overrides("lora:r=8,lora_alpha=4") == ["method.name=lora", "method.r=8", "method.lora_alpha=4"]
    assert method_overrides("bitfit") == ["method.name=bitfit"]


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the peak memory of one child needs wait4, which Windows lacks")
def test_a_175_billion_parameter_model_in_seconds(tmp_path: Path) -> None:
    shape = {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048, "vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **shape}), encoding="utf-8")
    arguments = ["count-params", "--model", str(tmp_path), "--task", "causal_lm", "--method", "lora:r=8", "--json"]
    child = subprocess.Popen([sys.executable, "-m", "peftcli", *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    (row,) = json.load(child.stdout)
    child.stdout.close()
    _, child.returncode, usage = os.wait4(child.pid, 0)
    assert row["trainable"] == row["saved"] == 96 * 2 * 8 * 2 * 12288
    assert 174e9 < row["total"] < 176e9
    assert usage.ru_utime + usage.ru_stime < 8
    assert usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) < 1.5e9
