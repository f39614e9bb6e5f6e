"""A method that is attached while the base is on the meta device starts as on a base that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.distributed.processes import World
from peftcli.layers.part_device import base_comes_to
from peftcli.models.load.load_model import Loaded, load_model
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import ModelSpec
from tests.matrix.cases import CASES as OF_METHODS
from tests.tiny import save_tiny

CPU = torch.device("cpu")
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("lora", {"use_dora": True, "target_modules": "all-linear"}),
    "pissa": ("lora", {"init_lora_weights": "pissa"}),
    "embeddings": ("lora", {"target_modules": ["embeddings", "attn.q"], "use_dora": True}),
    "a fused one's bias": ("lora", {"bias": "lora_only"}),
    "vocabulary": ("prompt_tuning", {"prompt_tuning_init": "sample_vocab"}),
    "saved": ("lora", {"modules_to_save": ["0"]}),
}
CASES = {**{name: (name, dict(case.params)) for name, case in OF_METHODS.items()}, **MORE}


@pytest.fixture(scope="module", params=["llama", "gpt2", "bert"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stored = "masked_lm" if request.param == "bert" else "causal_lm"
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param, stored)


@pytest.mark.parametrize("case", CASES)
def test_same_parameters_with_the_same_values(directory: Path, case: str) -> None:
    method, params = CASES[case]
    typed = registry.info(method).params(**params)
    task = "sequence_classification" if directory.name.startswith("bert") else "causal_lm"
    tokenizer = load_tokenizer(ModelSpec(name_or_path=str(directory)))
    models = []
    for in_shares in (False, True):
        base: Loaded = load_model(
            ModelSpec(name_or_path=str(directory), dtype="bfloat16"), task, world=World(CPU), in_shares=in_shares
        )
        anatomy = read_anatomy(base.model)
        if registry.method(method).check(anatomy, typed):
            pytest.skip("this family has nothing for it")
        torch.manual_seed(7)
        with base_comes_to(CPU):
            attachment = apply_method(base.model, anatomy, typed)
        if base.unread is not None:
            base.unread.fill(base.model, World(CPU))
        attachment.initialise(base.model, tokenizer=tokenizer)
        models.append((base.model, attachment))
    (plain, first), (later, second) = models
    assert list(first.trainable_parameters()) == list(second.trainable_parameters())
    values = dict(later.named_parameters())
    assert values.keys() == {name for name, _ in plain.named_parameters()}
    for name, value in plain.named_parameters():
        assert (value.dtype, value.requires_grad) == (values[name].dtype, values[name].requires_grad), name
        assert torch.equal(value, values[name]), name
    buffers = dict(later.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in plain.named_buffers())
