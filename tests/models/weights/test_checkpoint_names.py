"""Names in files against names in the model: transformers' own loading is the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from peftcli.models.weights.checkpoint_names import CheckpointNames
from tests.tiny import _AUTO, DECODERS, ENCODERS, SEQ2SEQ, save_tiny, tiny_model

PAIRS = [
    *[(family, stored, "sequence_classification") for family in ENCODERS for stored in ("base", "masked_lm")],
    *[(family, stored, "causal_lm") for family in DECODERS for stored in ("base", "causal_lm")],
    *[(family, "causal_lm", "sequence_classification") for family in ("gpt2", "llama", "gemma3_text", "mixtral")],
    *[(family, stored, "seq2seq_lm") for family in SEQ2SEQ for stored in ("base", "seq2seq_lm")],
    ("bert", "sequence_classification", "base"),
]


@pytest.mark.parametrize(("family", "stored", "task"), PAIRS)
def test_every_tensor_of_a_file_goes_where_transformers_puts_it(
    tmp_path: Path, family: str, stored: str, task: str
) -> None:
    save_tiny(tmp_path, family, stored)
    tensors = load_file(tmp_path / "model.safetensors")
    auto = getattr(transformers, _AUTO[task])
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    live = loaded.state_dict()
    with torch.device("meta"):
        names = CheckpointNames(tiny_model(family, task))
    places = {name: names.of_file(name) for name in tensors}
    assert {name for name, place in places.items() if place is None} <= set(report["unexpected_keys"])
    for name, place in places.items():
        if place is not None and not place.converted:
            assert torch.equal(live[place.live_name], tensors[name])
    covered = {place.live_name for place in places.values() if place is not None}
    aliases: dict[int, list[str]] = {}
    for name, parameter in loaded.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    lost = [names for names in aliases.values() if covered.isdisjoint(names) and names[0] not in report["missing_keys"]]
    assert lost == []


def test_experts_of_a_file_become_part_of_a_joined_tensor(tmp_path: Path) -> None:
    save_tiny(tmp_path, "mixtral")
    with torch.device("meta"):
        names = CheckpointNames(tiny_model("mixtral"))
    places = [names.of_file(name) for name in load_file(tmp_path / "model.safetensors") if "experts" in name]
    assert len(places) == 2 * 4 * 3  # blocks, experts, three matrices
    assert all(place is not None and place.converted for place in places)
    assert {place.live_name.rpartition(".")[2] for place in places if place} == {"gate_up_proj", "down_proj"}


def test_legacy_norm_names(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bert", "base")
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file, metadata={"format": "pt"})
    with torch.device("meta"):
        names = CheckpointNames(tiny_model("bert", "sequence_classification"))
    place = names.of_file("embeddings.LayerNorm.gamma")
    assert place is not None
    assert place.live_name == "bert.embeddings.LayerNorm.weight"
    assert all(names.of_file(name) for name in old)
