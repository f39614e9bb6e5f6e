"""How `--method NAME:key=value,...` is read."""

from __future__ import annotations

import pytest

from peftcli.console.method_text import method_overrides, split_outside_brackets


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
