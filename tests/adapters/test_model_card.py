"""A card that leaves this machine names a base of the hub, and of another one neither path nor user."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from peftcli.adapters.format import AdapterMeta
from peftcli.adapters.model_card import adapter_card
from peftcli.merging.merge_report import MergeReport
from peftcli.merging.merged_card import merged_card
from peftcli.methods.lora import LoraParams


def cards(base: str) -> list[str]:
    meta = AdapterMeta("causal_lm", base={"name": base})
    report = MergeReport("out", "float32", "lora", 1, 2, 3, False)
    return [
        adapter_card(LoraParams(), meta, use=None),
        merged_card(base, "causal_lm", "AutoModelForCausalLM", report),
    ]


def front(card: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(card.split("---")[1])
    return found


def test_a_base_of_the_hub_is_named() -> None:
    for card in cards("org/some-llama"):
        assert front(card)["base_model"] == "org/some-llama" and "\n# " in card
        assert "org/some-llama" in card.split("---")[2]


@pytest.mark.parametrize("relative", [False, True])
def test_a_base_on_this_machine_is_no_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    (tmp_path / "ada" / "some-llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    base = "ada/some-llama" if relative else str(tmp_path / "ada" / "some-llama")
    for card in cards(base):
        assert "base_model" not in front(card)  # the hub refuses a card with a path there
        assert "some-llama" in card and base not in card
