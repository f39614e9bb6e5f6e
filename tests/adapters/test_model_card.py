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


def test_a_card_of_quantised_weights_has_their_own_numbers() -> None:
    """It said of the 4-bit weights what was measured before they were quantised."""
    known = {
        "verified": True,
        "rows": 6,
        "max_abs_diff": 1e-3,
        "mean_abs_diff": 1e-4,
        "tolerance": 0.1,
        "agreement": 1.0,
    }
    report = MergeReport("out", "bfloat16", "lora", 1, 2, 3, **known)  # type: ignore[arg-type]
    plain = merged_card("org/m", "causal_lm", "AutoModelForCausalLM", report)
    assert "on 6 rows: largest difference" in plain and "4 bits" not in plain
    report.requantized = {"max_abs_diff": 2.5, "mean_abs_diff": 0.5, "agreement": 0.75}
    card = merged_card("org/m", "causal_lm", "AutoModelForCausalLM", report)
    assert "on 6 rows, before it was quantised again: largest difference" in card
    assert "In 4 bits, as it is here: largest difference 2.5, mean 0.5, agreement 75.0%." in card


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
