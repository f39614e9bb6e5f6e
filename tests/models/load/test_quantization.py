"""4- and 8-bit bases with the real bitsandbytes, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.errors import UserError
from peftcli.layers.cpu import wide_products
from peftcli.layers.quantised.quantised_weights import is_quantised
from peftcli.models.load import dtypes
from peftcli.models.load.dtypes import cpu_has_bfloat16
from peftcli.models.load.load_model import Loaded, count_parameters, load_model
from peftcli.models.load.quantization import keep_trainable, quantised_share
from peftcli.models.read_anatomy import read_anatomy
from peftcli.recipe.schema import ModelSpec
from tests.models.inputs import inputs_for
from tests.tiny import save_tiny, tiny_model

pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this platform")
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def _load(path: Path, family: str = "llama", task: Any = "causal_lm", **options: Any) -> Loaded:
    if not path.joinpath("config.json").exists():
        save_tiny(path, family, task, **(WIDE if family != "gpt2" else {"n_embd": 64}))
    return load_model(ModelSpec(name_or_path=str(path), **{"load_in_4bit": True, **options}), task)


def _deltas(model: nn.Module) -> list[nn.Parameter]:
    """Add a trainable shift behind every quantised layer."""
    model.requires_grad_(False)
    shifts = []
    for module in model.modules():
        if is_quantised(module):
            shift = nn.Parameter(torch.zeros(1, int(module.out_features)))
            module.register_forward_hook(lambda _m, _i, output, shift=shift: output + shift.to(output.dtype))
            shifts.append(shift)
    return shifts


def _gradients(model: nn.Module, shifts: list[nn.Parameter]) -> list[Tensor]:
    for shift in shifts:
        shift.grad = None
    model.train()
    out = model(**inputs_for("llama")).logits.float()
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    model.eval()
    return [torch.zeros(0) if shift.grad is None else shift.grad.clone() for shift in shifts]


@pytest.mark.parametrize("double", [True, False])
def test_an_evaluation_pass_leaves_gradients_and_weights_as_they_were(tmp_path: Path, double: bool) -> None:
    model = _load(tmp_path, bnb_4bit_use_double_quant=double).model
    shifts = _deltas(model)
    assert len(shifts) == 14
    before = _gradients(model, shifts)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        first = model(**inputs_for("llama")).logits
    after = _gradients(model, shifts)
    with torch.no_grad():
        assert torch.equal(first, model(**inputs_for("llama")).logits)
    for one, two in zip(before, after, strict=True):
        assert one.numel() and one.abs().sum() > 0
        assert torch.equal(one, two)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_computes_in_the_type_that_is_asked_for_where_the_cpu_has_it(tmp_path: Path, dtype: str) -> None:
    loaded = _load(tmp_path, bnb_4bit_compute_dtype=dtype)
    here = dtype if dtype == "float32" or cpu_has_bfloat16() else "float32"  # said in the quantisation of the run
    assert f"computes in {here}" in str(loaded.identity.quantization)
    kinds = {str(module.compute_dtype) for module in loaded.model.modules() if is_quantised(module)}
    assert kinds == {f"torch.{here}"}


def test_no_product_is_left_to_be_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def products(loaded: Loaded) -> set[torch.dtype]:
        return {module.compute_dtype for module in loaded.model.modules() if is_quantised(module)}  # type: ignore[misc]

    has_bfloat16: list[bool] = [True]
    for module in (wide_products, dtypes):
        monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: has_bfloat16[0])
    with_them = _load(tmp_path / "base", dtype="bfloat16")
    assert products(with_them) == {torch.bfloat16}
    with_them.model.save_pretrained(tmp_path / "stored")
    has_bfloat16[0] = False
    assert products(_load(tmp_path / "base", dtype="bfloat16")) == {torch.float32}
    stored = load_model(ModelSpec(name_or_path=str(tmp_path / "stored"), dtype="bfloat16"), "causal_lm")
    assert products(stored) == {torch.float32}
    assert "no bfloat16 instructions" in " ".join(stored.notes)


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="bitsandbytes repacks only on CPUs with AVX512-BF16")
def test_the_guard_is_needed(tmp_path: Path) -> None:
    """Without it an evaluation pass cuts the gradients: the test above would fail."""
    model = _load(tmp_path).model
    shifts = _deltas(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True  # type: ignore[assignment]  # an attribute of bitsandbytes
    before = _gradients(model, shifts)
    with torch.no_grad():
        model(**inputs_for("llama"))
    after = _gradients(model, shifts)
    assert any(one.shape != two.shape or not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    keep_trainable(model)
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())


@pytest.mark.parametrize(
    ("family", "task", "head"),
    [
        ("llama", "causal_lm", "lm_head"),
        ("gpt2", "causal_lm", "lm_head"),
        ("bert", "sequence_classification", "classifier"),
        ("roberta", "sequence_classification", "classifier.dense"),
        ("llama", "sequence_classification", "score"),
    ],
)
def test_blocks_are_quantised_and_heads_are_not(tmp_path: Path, family: str, task: str, head: str) -> None:
    loaded = _load(tmp_path, family, task)
    anatomy = read_anatomy(loaded.model)
    assert all(is_quantised(loaded.model.get_submodule(linear.module)) for linear in anatomy.linears)
    assert not is_quantised(loaded.model.get_submodule(head))
    assert quantised_share(loaded.model, anatomy) > 0.95
    assert loaded.identity.quantization == "bitsandbytes 4-bit nf4, double, computes in float32"
    assert any("of the block weights are quantised" in note for note in loaded.notes)
    plain = tiny_model(family, task, **(WIDE if family != "gpt2" else {"n_embd": 64}))
    if "classification" not in task:
        assert count_parameters(loaded.model) == count_parameters(plain)


def test_quantised_outputs_are_near_the_plain_ones(tmp_path: Path) -> None:
    four, eight = _load(tmp_path), _load(tmp_path, load_in_4bit=False, load_in_8bit=True)
    plain = tiny_model("llama", **WIDE)
    with torch.no_grad():
        wanted = plain(**inputs_for("llama")).logits
        for loaded, tolerance in ((four, 0.35), (eight, 0.05)):
            got = loaded.model(**inputs_for("llama")).logits
            assert (got - wanted).norm() / wanted.norm() < tolerance
            assert not torch.equal(got, wanted)
    assert eight.identity.quantization == "bitsandbytes 8-bit"
    shifts = _deltas(eight.model)
    assert all(gradient.abs().sum() > 0 for gradient in _gradients(eight.model, shifts))


@pytest.mark.parametrize("size", [{}, {"hidden_size": 40, "intermediate_size": 50}])
def test_sizes_that_bitsandbytes_packed_code_refuses_compute_all_the_same(tmp_path: Path, size: dict[str, int]) -> None:
    save_tiny(tmp_path, "llama", **size)
    model = load_model(ModelSpec(name_or_path=str(tmp_path), load_in_4bit=True), "causal_lm").model
    with torch.no_grad():
        assert model(**inputs_for("llama")).logits.isfinite().all()


def test_a_small_quantised_share_is_refused_unless_the_recipe_allows_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only 11% of the block weights .*mlp\.experts\.gate_up_proj") as caught:
        _load(tmp_path, "mixtral")
    assert "model.min_quantized_share: 0.11" in str(caught.value)
    allowed = _load(tmp_path, "mixtral", min_quantized_share=0.11).model
    assert 0.1 < quantised_share(allowed, read_anatomy(allowed)) < 0.12


def test_a_checkpoint_that_is_quantised_already_loads_as_it_is(tmp_path: Path) -> None:
    first = _load(tmp_path / "plain", bnb_4bit_quant_type="fp4").model
    first.save_pretrained(tmp_path / "quantised")
    again = _load(tmp_path / "quantised", load_in_4bit=False)
    assert quantised_share(again.model, read_anatomy(again.model)) > 0.95
    assert again.identity.quantization == "bitsandbytes 4-bit fp4, double, computes in float32"
    with torch.no_grad():
        assert torch.equal(first(**inputs_for("llama")).logits, again.model(**inputs_for("llama")).logits)
    shifts = _deltas(again.model)
    assert all(gradient.abs().sum() > 0 for gradient in _gradients(again.model, shifts))


def test_both_widths_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        _load(tmp_path, load_in_8bit=True)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftcli.models.load import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        _load(tmp_path)


def test_a_checkpoint_of_another_quantiser_is_not_quantised_again(tmp_path: Path) -> None:
    import json

    save_tiny(tmp_path, "llama")
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(UserError, match=r"load_in_4bit: this checkpoint is quantised already, with gptq"):
        _load(tmp_path)
