"""Learning-rate defaults: the demo's rates stay, others lie in the published windows, and no width makes a jump."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest

from peftcli.analysis.advice.advice_rules import rules
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.rates.default_rate import DefaultRate, default_rate, model_kind, rate_of_task
from peftcli.protocol.rates.published_sources import sources
from peftcli.protocol.rates.rate_evidence import points_for, rate_evidence
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from peftcli.tasks.task_info import ModelKind
from tests.tiny import tiny_model

KINDS: tuple[ModelKind, ...] = get_args(ModelKind)
WIDTHS = sorted({*range(16, 2048, 48), *range(2048, 20_000, 256), 384, 575, 576, 577})


def params_of(name: str, **settings: Any) -> MethodParams:
    lacking = {"parts": [{"name": "lora"}, {"name": "bitfit"}]} if name == "compose" else {}
    return registry.info(name).params.model_validate(lacking | settings)


def rate(name: str, kind: ModelKind, width: int, **settings: Any) -> DefaultRate:
    return default_rate(registry.method(name), params_of(name, **settings), kind, width)


@pytest.mark.parametrize("name", registry.names())
def test_on_the_demo_a_method_has_the_rate_that_was_measured_there(name: str) -> None:
    found = rate(name, "encoder", 384)
    assert found.value == registry.info(name).learning_rate
    assert not found.extrapolated and "demo-22m" in found.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", registry.names())
def test_a_rate_never_rises_with_the_width_and_never_jumps(name: str, kind: ModelKind) -> None:
    method, params = registry.method(name), params_of(name)
    rates = [default_rate(method, params, kind, width).value for width in WIDTHS]
    assert all(1.0 <= lower / higher <= 1.35 for higher, lower in pairwise(reversed(rates)))
    assert rates[0] > rates[-1]
    near = [default_rate(method, params, kind, width).value for width in range(600, 700)]
    assert all(before / after <= 1.11 for before, after in pairwise(near))  # two digits: a step is a tenth at most


@pytest.mark.parametrize("width", [2048, 2560, 3072, 4096, 5120, 7168, 8192, 16384])
@pytest.mark.parametrize("settings", [{}, {"r": 16, "lora_alpha": 32}, {"r": 64}, {"r": 32, "lora_alpha": 64}])
def test_lora_from_a_billion_up_lies_in_the_published_window(width: int, settings: dict[str, Any]) -> None:
    """28 models, best rates 1e-4 to 1e-3; above, runs diverged. Full fine-tuning: a tenth."""
    found = rate("lora", "decoder", width, **settings)
    assert 1e-4 <= found.value <= 1e-3
    full = rate("full", "decoder", width)
    assert full.value == pytest.approx(rate("lora", "decoder", width).value / 10, rel=0.05)
    assert "tinker-sweep" in found.reason and "lora-without-regret" in full.reason


def test_a_small_decoder_starts_near_the_best_rate_that_was_found() -> None:
    assert 2e-3 < rate("lora", "decoder", 576).value <= 6e-3  # 6e-3 in 40 steps; 2e-3 was 0.1 of loss behind


@pytest.mark.parametrize("width", [384, 1024, 4096])
def test_starts_from_the_weights_want_less(width: int) -> None:
    plain = rate("lora", "decoder", width).value
    for init, times in (("pissa", 0.1), ("pissa_niter_4", 0.1), ("olora", 1 / 18), (False, 0.55), ("eva", 1)):
        found = rate("lora", "decoder", width, init_lora_weights=init)
        assert found.value == pytest.approx(plain * times, rel=0.1), init
        assert ("lr-matters" in found.reason) == (times != 1)
    assert rate("lora", "encoder", width, init_lora_weights="pissa") == rate("lora", "encoder", width)
    pair = [{"name": "lora", "init_lora_weights": "pissa"}, {"name": "bitfit"}]
    assert rate("compose", "decoder", width, parts=pair).value < 0.2 * rate("compose", "decoder", width).value


def test_a_larger_scale_wants_less_and_the_rank_alone_changes_nothing() -> None:
    plain = rate("lora", "decoder", 4096)
    assert rate("lora", "decoder", 4096, r=64) == plain
    stable = rate("lora", "decoder", 4096, r=64, use_rslora=True)
    assert stable.value == pytest.approx(plain.value / 8**0.5, rel=0.05) and stable.extrapolated
    extreme = rate("lora", "decoder", 4096, lora_alpha=10**6)
    assert extreme.value == pytest.approx(plain.value / 4, rel=0.05)
    assert rate("lora", "decoder", 4096, loraplus_lr_ratio=16.0).value < plain.value


def test_b_alone_is_trained_faster() -> None:
    assert rate("lora", "encoder", 384, freeze_a=True).value == 6e-3


def test_the_head_alone_is_trained_at_its_own_rate() -> None:
    assert rate("freeze", "encoder", 384, num_layers=0).value == 0.1


def test_what_nobody_measured_is_said() -> None:
    assert rate("adapter", "decoder", 4096).reason.endswith("extrapolated")
    assert rate("lora", "encoder", 3000).extrapolated
    assert not rate("lora", "decoder", 4096).extrapolated


@pytest.mark.parametrize(
    ("family", "task", "kind"),
    [("bert", "base", "encoder"), ("llama", "causal_lm", "decoder"), ("t5", "seq2seq_lm", "encoder_decoder")],
)
def test_the_kind_of_a_model_is_read_from_its_stacks(family: str, task: str, kind: str) -> None:
    assert model_kind(read_anatomy(tiny_model(family, task))) == kind


def test_each_piece_of_evidence_has_a_source_and_a_scope() -> None:
    evidence, known = rate_evidence(), sources()
    for group in evidence.groups.values():
        assert group.demo_rate == registry.info(group.exemplar).learning_rate
        for points in (group.encoder, group.decoder, group.encoder_decoder):
            assert [point.width for point in points] == sorted({point.width for point in points})
            assert [point.rate for point in points] == sorted((point.rate for point in points), reverse=True)
            assert all(point.source in known and point.scope for point in points)
    assert all(one.source in known and one.scope and one.says for one in evidence.settings.values())
    assert all(one.title and one.who and one.where and one.read for one in known.values())


def test_each_source_is_used() -> None:
    groups = rate_evidence().groups.values()
    points = [point for group in groups for kind in KINDS for point in points_for(group, kind)]
    named = {one.source for one in [*points, *rate_evidence().settings.values(), *rules()]}
    assert set(sources()) <= named


@pytest.mark.parametrize(("loss", "share"), [(None, 0.1), ("kto", 0.1), ("orpo", 0.5)])
def test_preference_tuning_takes_a_share_of_it(loss: str | None, share: float) -> None:
    own = rate("lora", "decoder", 2048)
    found = rate_of_task(own, "preference", loss)
    assert found.value == pytest.approx(share * own.value, rel=0.02) and found.reason.startswith(f"{share:g} x the ")
    assert rate_of_task(own, "causal_lm", None) == own
