"""Spectra from factors, measured adapters, and what is answered about the rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.analysis.adapter_plot import adapter_svg
from peftcli.analysis.adapter_view import view_adapter
from peftcli.analysis.module_change import ModuleChange
from peftcli.analysis.rank_verdict import judge
from peftcli.analysis.spectrum import Spectrum, product_spectrum
from peftcli.errors import UserError
from peftcli.methods.adalora import AdaLoraParams
from peftcli.methods.lora import LoraParams
from tests.merging.runs import make_run as _make_run


def make_run(folder: Path, family: str, task: str, method: dict[str, Any]) -> Path:
    """Return a run with a random adapter on a tiny base."""
    return _make_run(folder, family, task, method, base_class="causal_lm" if task == "causal_lm" else "base")


@pytest.mark.parametrize(("d_out", "k", "d_in"), [(20, 4, 30), (3, 5, 30), (20, 5, 2)])
def test_spectrum_is_that_of_the_full_matrix(d_out: int, k: int, d_in: int) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(d_out, k), torch.randn(k, d_in)
    full = 0.5 * left.double() @ right.double()
    expected = torch.linalg.svdvals(full)
    spectrum = product_spectrum(left, right, -0.5)
    values = torch.tensor(spectrum.values, dtype=torch.float64)
    torch.testing.assert_close(values, expected[: len(values)])
    assert spectrum.norm == pytest.approx(float(torch.linalg.norm(full)))


def test_ranks_of_known_spectra() -> None:
    flat = Spectrum((2.0, 2.0, 2.0, 2.0))
    assert flat.effective_rank == pytest.approx(4.0)
    assert [flat.rank_of_energy(share) for share in (0.5, 0.75, 0.9, 1.0)] == [2, 3, 4, 4]
    steep = Spectrum((10.0, 1.0, 0.1, 0.0))
    assert 1.0 < steep.effective_rank < 2.0
    assert (steep.rank_of_energy(0.9), steep.rank_of_energy(0.995)) == (1, 2)
    nothing = Spectrum((0.0, 0.0))
    assert (nothing.effective_rank, nothing.rank_of_energy(0.9), nothing.flatness) == (0.0, 0, 0.0)


def merged_change(run: Path) -> dict[str, Any]:
    """Return, per weight of the base, the change that a merge would make: the slow way."""
    from peftcli.merging.run_to_merge import open_run_to_merge
    from peftcli.models.weights.base_files import stored_tensors
    from peftcli.models.weights.checkpoint_names import CheckpointNames

    subject = open_run_to_merge(run, None)
    names = CheckpointNames(subject.model)
    found = {}
    for name, stored in stored_tensors(run.parent / "model").items():
        live = names.of_file(name)
        rule = subject.rules().get(live.live_name) if live else None
        if live and rule:
            before = stored.read_float32()
            found[live.live_name] = (before, rule.apply(before.clone()) - before)
    return found


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("bert", {"name": "lora", "r": 4, "target_modules": ["attn.q", "ffn.down"]}),
        ("llama", {"name": "lora", "r": 4, "use_rslora": True, "target_modules": "all-linear"}),
        ("bert", {"name": "lora", "r": 4, "use_dora": True}),
        ("llama", {"name": "lora", "r": 2, "init_lora_weights": "pissa"}),
        ("llama", {"name": "adalora", "init_r": 6, "target_r": 3, "target_modules": ["attn.q"]}),
        ("llama", {"name": "vera", "r": 8}),
        ("llama", {"name": "ia3"}),
        ("llama", {"name": "oft", "oft_block_size": 8}),
        ("llama", {"name": "miss", "r": 7}),
        ("llama", {"name": "hira", "r": 3}),
        ("llama", {"name": "lokr", "r": 2}),
        ("llama", {"name": "shira", "r": 3}),
        ("bert", {"name": "bitfit"}),
        ("llama", {"name": "qlora", "r": 4}),
    ],
    ids=[
        "lora",
        "rslora",
        "dora",
        "pissa",
        "adalora",
        "vera",
        "ia3",
        "oft",
        "miss",
        "hira",
        "lokr",
        "shira",
        "bitfit",
        "qlora",
    ],
)
def test_norms_are_those_of_the_merge(tmp_path: Path, family: str, method: dict[str, Any]) -> None:
    task = "causal_lm" if family == "llama" else "sequence_classification"
    run = make_run(tmp_path, family, task, method)
    view = view_adapter(run)
    changes = merged_change(run)
    compared = 0
    for row in view.rows:
        name = row.name if row.name in changes else f"{row.name}.weight"
        before, change = changes[name]
        assert row.weight == pytest.approx(float(torch.linalg.norm(before)), rel=1e-5)
        assert row.change == pytest.approx(float(torch.linalg.norm(change)), rel=1e-3, abs=1e-6)
        if row.spectrum is not None and row.magnitude is None:
            full = torch.linalg.svdvals(change.double())
            expected = full[: len(row.spectrum.values)]
            torch.testing.assert_close(torch.tensor(row.spectrum.values).double(), expected, rtol=1e-3, atol=1e-5)
        compared += 1
    assert compared >= 4 - 2 * (method["name"] == "adalora")


def test_slices_of_a_fused_projection_have_their_own_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, "gpt2", "causal_lm", {"name": "lora", "r": 3, "target_modules": ["attn.q", "attn.v"]})
    view = view_adapter(run)
    assert [(row.role, row.layer, row.shape) for row in view.rows[:2]] == [
        ("attn.q", 0, (32, 32)),
        ("attn.v", 0, (32, 32)),
    ]
    name = "transformer.h.0.attn.c_attn.weight"
    before, change = merged_change(run)[name]
    assert view.rows[0].weight == pytest.approx(float(torch.linalg.norm(before[:, :32])), rel=1e-5)
    assert view.rows[0].change == pytest.approx(float(torch.linalg.norm(change[:, :32])), rel=1e-4)
    assert view.rows[1].change == pytest.approx(float(torch.linalg.norm(change[:, 64:])), rel=1e-4)


def test_adalora_shows_kept_of_allotted_ranks(tmp_path: Path) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", {"name": "adalora", "init_r": 6, "target_r": 3})
    saved = load_adapter(run / "adapter")
    state = dict(saved.state)
    key = next(name for name in state if name.endswith(".lora_E")).removesuffix(".lora_E")
    state |= {f"{key}.{name}": state[f"{key}.{name}"][:2] for name in ("lora_E", "lora_A")}
    state[f"{key}.lora_B"] = state[f"{key}.lora_B"][:, :2]
    save_adapter(tmp_path / "pruned", attachment_state=state, params=saved.params, meta=saved.meta)
    rows = {row.name: row for row in view_adapter(tmp_path / "pruned").rows}
    assert (rows[key].kept, rows[key].allotted) == (2, 6)
    assert {row.kept for row in rows.values()} == {2, 6}


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
def test_an_initial_pair_is_no_part_of_r(init: str, tmp_path: Path) -> None:
    name = "qlora" if init == "loftq" else "lora"
    view = view_adapter(make_run(tmp_path, "llama", "causal_lm", {"name": name, "r": 4, "init_lora_weights": init}))
    assert {(row.allotted, row.kept) for row in view.rows} == {(4, 8)}
    assert all(0 < row.as_dict()["rank_used"] <= 1 for row in view.rows)
    assert "the rank 8 that r = 4 allows" in judge(view.rows, view.params).text


@pytest.mark.parametrize(
    "method",
    [
        {"name": "prefix_tuning", "num_virtual_tokens": 3},
        {"name": "prompt_tuning", "num_virtual_tokens": 3},
        {"name": "adapter", "bottleneck_size": 4},
        {"name": "compacter", "phm_dim": 2, "bottleneck_size": 4},
    ],
    ids=lambda method: method["name"],
)
def test_methods_that_change_no_weight_show_their_tensors(tmp_path: Path, method: dict[str, Any]) -> None:
    view = view_adapter(make_run(tmp_path, "llama", "causal_lm", method))
    added = [row for row in view.rows if row.tensors]  # the others are norms, trained in place
    assert added
    assert all(row.change is None for row in added)
    assert all(row.change is not None for row in view.rows if not row.tensors)
    verdict = judge(view.rows, view.params)
    assert verdict.answer == "unknown"
    assert "trains no low-rank change" in verdict.line()


def test_a_composition_has_the_rows_of_its_parts(tmp_path: Path) -> None:
    view = view_adapter(make_run(tmp_path, "bert", "sequence_classification", {"name": "unipelt"}))
    gated = [row for row in view.rows if row.spectrum is not None]
    assert gated
    assert all(row.gated for row in gated)
    assert any(row.tensors for row in view.rows)


def test_without_the_bases_weights_the_spectra_remain(tmp_path: Path) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", {"name": "lora", "r": 4})
    (tmp_path / "model" / "model.safetensors").unlink()
    view = view_adapter(run)
    assert view.rows[0].spectrum is not None
    assert view.rows[0].weight is None
    assert any("relative sizes are left out" in note for note in view.notes)


def test_an_exported_adapter_is_read_without_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", {"name": "lora", "r": 4})
    assert view_adapter(run / "adapter").rows == view_adapter(run).rows


def row(values: tuple[float, ...], number: int) -> ModuleChange:
    spectrum = Spectrum(values)
    return ModuleChange(f"h.{number}.q", "attn.q", number, (64, 64), spectrum.norm, 1.0, len(values), spectrum)


STEEP = (1.0, 0.1, 0.01, 0.001, 0.001, 0.001, 0.001, 0.001)
FLAT = (1.0, 0.95, 0.9, 0.9, 0.85, 0.8, 0.8, 0.75)
MIDDLE = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.1)


@pytest.mark.parametrize(
    ("spectra", "answer", "change"),
    [
        ([STEEP, STEEP, STEEP, FLAT], "too high", ("method.r=2", "method.lora_alpha=4")),
        ([FLAT, FLAT, STEEP], "too low", ("method.r=16", "method.lora_alpha=32")),
        ([MIDDLE, MIDDLE, MIDDLE], "fits", ()),
        ([(0.0,) * 8], "unknown", ()),
    ],
    ids=["steep", "flat", "middle", "zero"],
)
def test_the_answer_follows_the_spectra(spectra: list[tuple[float, ...]], answer: str, change: tuple[str, ...]) -> None:
    verdict = judge([row(values, number) for number, values in enumerate(spectra)], LoraParams(r=8, lora_alpha=16))
    assert (verdict.answer, verdict.change) == (answer, change)
    assert "\n" not in verdict.line()


def test_one_singular_value_is_no_answer() -> None:
    verdict = judge([row((1.0,), 0)], LoraParams(r=1, lora_alpha=2))
    assert (verdict.answer, verdict.change) == ("unknown", ("method.r=4", "method.lora_alpha=8"))


def test_pruned_modules_are_judged_by_the_ranks_they_kept() -> None:
    rows = [
        ModuleChange(f"h.{n}.q", "attn.q", n, (64, 64), 1.0, 1.0, 12, Spectrum((1.0, 0.6, 0.3, 0.2)[:kept]))
        for n, kept in enumerate((4, 4, 3, 1))
    ]
    verdict = judge(rows, AdaLoraParams(init_r=12, target_r=3))
    assert verdict.answer == "fits"
    assert "kept: 1 to 4, 3 on average" in verdict.text


def test_the_answer_keeps_rslora_s_scale_and_names_adaloras_options() -> None:
    rows = [row(FLAT, number) for number in range(3)]
    assert judge(rows, LoraParams(r=8, use_rslora=True)).change == ("method.r=16",)
    assert judge(rows, AdaLoraParams(init_r=8, target_r=8)).change == ("method.target_r=16", "method.init_r=16")


def test_the_plot_names_roles_and_layers() -> None:
    rows = [row(FLAT, number) for number in range(3)]
    drawn = adapter_svg(rows, "runs/<x>")
    assert drawn.startswith("<svg")
    assert "runs/&lt;x&gt;" in drawn
    assert drawn.count("<rect") == 1 + 3  # the background and a cell for each layer
    with pytest.raises(UserError, match="nothing to plot"):
        adapter_svg([ModuleChange("prompt", tensors={"prompt": 1.0})], "x")
