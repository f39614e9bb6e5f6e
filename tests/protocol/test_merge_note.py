"""What a merge will refuse is said before the first step."""

from __future__ import annotations

import pytest

from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.mergeability import merge_note
from peftcli.protocol.registry import registry
from tests.tiny import tiny_model


@pytest.mark.parametrize(("family", "module", "noted"), [("mixtral", "mlp.experts", True), ("llama", "mlp", False)])
def test_experts_that_a_file_holds_in_pieces(family: str, module: str, noted: bool) -> None:
    model = tiny_model(family, "causal_lm")
    anatomy = read_anatomy(model)
    params = registry.info("lora").params(modules_to_save=[module])
    note = merge_note(anatomy, params, apply_method(model, anatomy, params))
    assert (note is not None and "stored in several pieces" in note) == noted
