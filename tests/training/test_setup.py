"""What is switched on before the first step."""

from __future__ import annotations

import pytest
import torch

from peftcli.assembly.outline import outline
from peftcli.assembly.precision import decide_precision, probe_bfloat16
from peftcli.errors import UserError
from peftcli.recipe.schema import TrainingSpec
from peftcli.training.optim.neftune import add_neftune
from peftcli.training.speed.activation_checkpointing import enable_checkpointing
from peftcli.training.training_checks import TrainingChecks
from tests.tiny import tiny_model


@pytest.mark.parametrize("checkpointed", [False, True])
def test_nothing_below_the_lowest_trained_block_is_in_the_graph(checkpointed: bool) -> None:
    model = tiny_model("llama").requires_grad_(False).train()
    model.model.layers[1].self_attn.q_proj.weight.requires_grad_(True)
    if checkpointed:
        enable_checkpointing(model)
    seen: list[bool] = []
    model.model.layers[0].register_forward_hook(lambda _m, _a, y: seen.append(y.requires_grad))
    model(input_ids=torch.arange(6)[None], use_cache=False).logits.sum().backward()
    assert seen == [False]
    assert model.model.layers[1].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_a_family_without_checkpointing_is_named() -> None:
    with pytest.raises(UserError, match="set it to false"):
        enable_checkpointing(torch.nn.Linear(2, 2))


def test_a_family_without_checkpointing_is_refused_before_data_and_weights(recipe) -> None:
    loaded = recipe("albert", "sequence_classification", training__gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"run.yaml:\d+: training.gradient_checkpointing: Albert.* does not support"):
        outline(loaded, torch.device("cpu"), TrainingChecks())


def test_neftune_noise_is_bounded_and_only_while_training() -> None:
    embeddings = torch.nn.Embedding(10, 16)
    ids = torch.arange(8)[None]
    plain = embeddings(ids)
    add_neftune(embeddings, alpha=5.0)
    noise = embeddings(ids) - plain
    bound = 5.0 / (8 * 16) ** 0.5
    assert 0.5 * bound < noise.abs().max() <= bound
    assert torch.equal(embeddings.eval()(ids), plain)


def test_precision_follows_the_recipe_then_the_weights_then_the_probe(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "first"))  # where a probe's answer is kept
    cpu = torch.device("cpu")

    def decided(weights: torch.dtype, recorded: str | None = None, **options: object) -> torch.dtype:
        return decide_precision(TrainingSpec(**options), weights, cpu, width=32, recorded=recorded).compute

    import peftcli.assembly.precision as precision

    monkeypatch.setattr(precision, "probe_bfloat16", lambda *_: (True, 2.0))
    assert decided(torch.float32) == torch.bfloat16
    assert decided(torch.float32, recorded="float32") == torch.float32
    assert decided(torch.float32, bf16=False) == torch.float32
    assert decided(torch.bfloat16) == torch.bfloat16
    assert decided(torch.bfloat16, bf16=False) == torch.bfloat16
    monkeypatch.setattr(precision, "probe_bfloat16", lambda *_: (False, 0.9))
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "second"))
    assert decided(torch.float32) == torch.float32
    assert decided(torch.float32, bf16=True) == torch.bfloat16
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        decided(torch.float32, fp16=True)


def test_the_probe_draws_no_random_number_of_the_run() -> None:
    before = torch.get_rng_state()
    faster, ratio = probe_bfloat16("cpu", 16)
    assert torch.equal(torch.get_rng_state(), before)
    assert ratio > 0 and isinstance(faster, bool)


def test_a_wide_block_is_not_tried_where_bfloat16_is_emulated(monkeypatch) -> None:
    import peftcli.assembly.precision as precision

    for ratio, answer, widths in ((0.1, False, [128]), (0.9, False, [128, 2048]), (2.0, True, [128, 2048])):
        tried: list[int] = []

        def compared(_device: torch.device, width: int, ratio: float = ratio, tried: list[int] = tried) -> object:
            tried.append(width)
            return True, ratio

        monkeypatch.setattr(precision, "_compared", compared)
        assert probe_bfloat16.__wrapped__("cpu", 4096) == (answer, ratio)
        assert tried == widths
