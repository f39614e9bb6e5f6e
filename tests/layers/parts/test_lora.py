"""LoRA, DoRA, PiSSA and embedding parts against the written-out formula, and against HF peft's layers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.attachments.lora import embedding_change, linear_change
from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.base_table import BaseTable
from peftcli.layers.cpu.cpu_paths import CpuPaths
from peftcli.layers.finite_tensors import first_not_finite
from peftcli.layers.parts.dora import DoraDelta
from peftcli.layers.parts.lora import LoraDelta, lowrank_delta
from peftcli.layers.parts.lora_embedding import EmbeddingDoraDelta, EmbeddingLoraDelta
from peftcli.layers.parts.lora_init import PrincipalPair, gaussian_init, kaiming_init, orthogonal_init, random_init
from peftcli.layers.row_draws import DrawnRows, drawing
from peftcli.layers.site import Part, output_site
from peftcli.models.anatomy import FusedSlice


def _attach(host: nn.Module, part: Part) -> nn.Module:
    host.requires_grad_(False)
    output_site(host).parts.append(part)
    return host


def _hosts() -> list[tuple[str, nn.Module, FusedSlice | None]]:
    torch.manual_seed(7)
    conv = Conv1D(12, 5)
    nn.init.normal_(conv.bias)
    return [
        ("linear", nn.Linear(5, 12), None),
        ("no bias", nn.Linear(5, 12, bias=False), None),
        ("conv1d", conv, None),
        ("fused", Conv1D(12, 5), FusedSlice(1, 12, 4, 4)),
        ("per head", nn.Linear(5, 12), FusedSlice(2, 6, 2, 2)),
    ]


def _dense(host: nn.Module) -> Tensor:
    return host.weight.detach().T if isinstance(host, Conv1D) else host.weight.detach()


def _rows(rows: FusedSlice | None) -> list[int]:
    if rows is None:
        return list(range(12))
    return [group * rows.width + rows.start + i for group in range(rows.groups) for i in range(rows.size)]


@pytest.mark.parametrize(("name", "host", "rows"), _hosts(), ids=lambda v: v if isinstance(v, str) else "")
def test_lora_is_the_formula_on_every_kind_of_host(name: str, host: nn.Module, rows: FusedSlice | None) -> None:
    x = torch.randn(2, 3, 5)
    plain = host(x)
    part = LoraDelta(BaseLinear(host, rows), 2, 1.5)
    _attach(host, part)
    torch.testing.assert_close(host(x), plain, atol=0, rtol=0)  # B is zero: a fresh adapter is the identity
    nn.init.normal_(part.lora_B.weight)
    expected = plain.clone()
    product = part.lora_B.weight @ part.lora_A.weight
    expected[..., _rows(rows)] += 1.5 * x @ product.T
    torch.testing.assert_close(host(x), expected)
    torch.testing.assert_close(part.delta(), 1.5 * product)


@pytest.mark.parametrize(("name", "host", "rows"), _hosts(), ids=lambda v: v if isinstance(v, str) else "")
def test_dora_is_the_formula_and_starts_as_the_identity(name: str, host: nn.Module, rows: FusedSlice | None) -> None:
    x = torch.randn(2, 3, 5)
    plain = host(x)
    part = DoraDelta(BaseLinear(host, rows), 2, 1.5)
    part.start_from_base()
    _attach(host, part).eval()
    torch.testing.assert_close(host(x), plain)
    nn.init.normal_(part.lora_B.weight)
    part.lora_magnitude_vector.data.uniform_(0.5, 2.0)
    part.train()
    weight = _dense(host)[_rows(rows)]
    changed = weight + 1.5 * part.lora_B.weight @ part.lora_A.weight
    changed = part.lora_magnitude_vector.unsqueeze(1) * changed / changed.norm(dim=1, keepdim=True)
    expected = plain.clone()
    bias = 0 if host.bias is None else host.bias[_rows(rows)]
    expected[..., _rows(rows)] = x @ changed.T + bias
    torch.testing.assert_close(host(x), expected)


def test_dora_keeps_no_stale_norm_after_training_or_loading() -> None:
    host = nn.Linear(5, 4)
    part = DoraDelta(BaseLinear(host), 2, 1.0)
    part.start_from_base()
    _attach(host, part).eval()
    x = torch.randn(3, 5)
    host(x)
    nn.init.normal_(part.adapter_tensors()["lora_B.weight"])  # as a load does
    evaluated = host(x)
    torch.testing.assert_close(evaluated, host.train()(x))
    part.lora_B.weight.data.mul_(2.0)  # as an optimizer that bypasses version counters does
    trained = host(x)
    torch.testing.assert_close(host.eval()(x), trained)


def test_dora_leaves_a_feature_without_weights_alone() -> None:
    """Its norm is 0: the pass, its gradients and the merged weight are numbers all the same."""
    host, table = nn.Linear(5, 4), nn.Embedding(6, 4)
    with torch.no_grad():
        host.weight[1], table.weight[:, 2] = 0.0, 0.0
    for module, given in ((host, torch.randn(3, 5)), (table, torch.arange(6))):
        plain = module(given).detach()
        linear = isinstance(module, nn.Linear)
        part = DoraDelta(BaseLinear(module), 2, 1.0) if linear else EmbeddingDoraDelta(BaseTable(module), 2, 1.0)
        part.start_from_base()
        found = _attach(module, part)(given)
        torch.testing.assert_close(found, plain)
        found.square().sum().backward()
        assert first_not_finite({name: own.grad for name, own in part.named_parameters()}) is None
        change = (linear_change if linear else embedding_change)(part.adapter_tensors(), 1.0)
        torch.testing.assert_close(change(module.weight.detach().clone()), module.weight.detach())


def test_dora_of_an_embedding_reads_the_whole_table_once_while_not_training() -> None:
    table = nn.Embedding(6, 4)
    part = EmbeddingDoraDelta(BaseTable(table), 2, 1.0)
    part.start_from_base()
    _attach(table, part).eval()
    table(torch.arange(3))
    kept = part.norm()
    table(torch.arange(3))
    assert part.norm() is kept and table.train()(torch.arange(3)) is not None and part.norm() is not kept


def test_doras_norm_gets_no_gradient() -> None:
    host = nn.Linear(5, 4, bias=False)
    part = DoraDelta(BaseLinear(host), 2, 1.0)
    part.start_from_base()
    _attach(host, part)
    nn.init.normal_(part.lora_B.weight)
    x = torch.randn(3, 5)
    host(x).sum().backward()
    norm = part.norm()
    factor = (part.lora_magnitude_vector / norm).detach()
    expected = (factor.unsqueeze(1) * torch.ones(4, 3)) @ (x @ part.lora_A.weight.detach().T)
    torch.testing.assert_close(part.lora_B.weight.grad, expected)


def test_pissa_starts_as_the_identity_and_holds_the_principal_part() -> None:
    host = nn.Linear(8, 6)
    x = torch.randn(4, 8)
    plain = host(x)
    part = LoraDelta(BaseLinear(host), 2, 0.5, dropout=0.5, decomposition=PrincipalPair())
    part.start_from_base()
    _attach(host, part).eval()
    torch.testing.assert_close(host(x), plain)
    left, values, right = torch.linalg.svd(host.weight)
    best = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
    torch.testing.assert_close(lowrank_delta(part.lora_A.weight, part.lora_B.weight, 0.5), best)
    nn.init.normal_(part.lora_B.weight)
    torch.testing.assert_close(host(x), plain + x @ part.delta().T)
    assert set(part.adapter_tensors()) == {"lora_A.weight", "lora_B.weight", "initial_A", "initial_B"}


def test_fast_pissa_is_close_to_the_exact_one() -> None:
    host = nn.Linear(8, 6)
    exact, fast = (LoraDelta(BaseLinear(host), 2, 1.0, decomposition=PrincipalPair(n)) for n in (None, 16))
    for part in (exact, fast):
        part.start_from_base()
    torch.testing.assert_close(
        lowrank_delta(fast.lora_A.weight, fast.lora_B.weight, 1.0),
        lowrank_delta(exact.lora_A.weight, exact.lora_B.weight, 1.0),
        atol=1e-3,
        rtol=1e-2,
    )


class _Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))


def test_a_gate_replaces_the_scale() -> None:
    host = nn.Linear(5, 4)
    part = LoraDelta(BaseLinear(host), 2, 2.0, init=random_init)
    x = torch.randn(2, 3, 5)
    plain = host(x)
    part.scale = _Gate(5)
    _attach(host, part)
    expected = plain + part.scale(x) * (x @ part.lora_A.weight.T @ part.lora_B.weight.T)
    torch.testing.assert_close(host(x), expected)
    host(x).sum().backward()
    assert part.scale.linear.weight.grad is not None
    with pytest.raises(TypeError, match="no constant weight change"):
        part.delta()


@pytest.mark.parametrize("scaled", [1.0, 3.0])
@pytest.mark.parametrize("magnitude", [False, True])
def test_an_embedding_gets_the_looked_up_change(scaled: float, magnitude: bool) -> None:
    host = nn.Embedding(10, 6)
    if scaled != 1.0:
        host.embed_scale = torch.tensor(scaled)
        host.register_forward_hook(lambda _m, _i, out: out * scaled)
    ids = torch.tensor([[1, 2, 9], [0, 0, 3]])
    plain = host(ids)
    part = (EmbeddingDoraDelta if magnitude else EmbeddingLoraDelta)(BaseTable(host), 2, 0.5)
    if magnitude:
        part.start_from_base()
    _attach(host, part)
    torch.testing.assert_close(host(ids), plain)
    nn.init.normal_(part.lora_embedding_A)
    changed = host.weight + 0.5 * (part.lora_embedding_B @ part.lora_embedding_A).T
    if magnitude:
        part.lora_magnitude_vector.data.uniform_(0.5, 2)
        changed = part.lora_magnitude_vector * changed / changed.norm(dim=0)
    torch.testing.assert_close(host(ids), scaled * changed[ids])


def test_the_default_initialisation_draws_the_numbers_of_hf_peft() -> None:
    torch.manual_seed(11)
    a = torch.empty(4, 6)
    nn.init.kaiming_uniform_(a, a=5**0.5)
    torch.manual_seed(11)
    ours, b = torch.empty(4, 6), torch.ones(3, 4)
    kaiming_init(ours, b)
    torch.testing.assert_close(ours, a, atol=0, rtol=0)
    assert not b.any()
    assert ours.abs().max() <= 6**-0.5


def test_gaussian_and_orthogonal_initialisations() -> None:
    a, b = torch.empty(4, 3000), torch.ones(3, 4)
    gaussian_init(a, b)
    assert a.std().item() == pytest.approx(0.25, rel=0.05)
    assert not b.any()
    a, b = torch.zeros(4, 6), torch.zeros(5, 4)
    orthogonal_init(a, b)
    assert a.any() and b.any()
    torch.testing.assert_close(b @ a, torch.zeros(5, 6), atol=1e-6, rtol=0)


def test_a_seed_means_the_same_and_meta_draws_nothing() -> None:
    first = LoraDelta(BaseLinear(nn.Linear(5, 4)), 2, 1.0)
    torch.manual_seed(1)
    first = LoraDelta(BaseLinear(nn.Linear(5, 4, device="meta")), 2, 1.0)
    assert first.lora_A.weight.is_meta
    second = LoraDelta(BaseLinear(nn.Linear(5, 4, bias=False)), 2, 1.0)
    torch.manual_seed(1)
    nn.Linear(5, 4, bias=False)
    third = LoraDelta(BaseLinear(nn.Linear(5, 4, device="meta")), 2, 1.0)
    assert third.lora_A.weight.is_meta
    torch.manual_seed(1)
    host = nn.Linear(5, 4, bias=False)
    fourth = LoraDelta(BaseLinear(host), 2, 1.0)
    torch.testing.assert_close(second.lora_A.weight, fourth.lora_A.weight)


def test_a_bfloat16_base_keeps_float32_factors() -> None:
    host = nn.Linear(5, 4, dtype=torch.bfloat16)
    part = LoraDelta(BaseLinear(host), 2, 1.0, init=random_init)
    _attach(host, part)
    out = host(torch.randn(3, 5, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and part.lora_A.weight.dtype == torch.float32


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_computed_as_it_is_and_stays_frozen(bits: int, use_dora: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    if bits == 4:
        host = bnb.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type="nf4")
    else:
        host = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    host.load_state_dict(nn.Linear(64, 32).state_dict())
    host = host.to("cpu")
    x = torch.randn(3, 64, requires_grad=True)
    plain = host(x).detach()
    part = (DoraDelta if use_dora else LoraDelta)(BaseLinear(host), 2, 1.5)
    if use_dora:
        part.start_from_base()
    _attach(host, part)
    torch.testing.assert_close(host(x), plain, atol=1e-4, rtol=1e-4)
    nn.init.normal_(part.lora_B.weight)
    expected = plain + 1.5 * x @ (part.lora_B.weight @ part.lora_A.weight).T
    if use_dora:
        c = part.lora_magnitude_vector / part.norm()
        expected = c * (expected - host.bias) + host.bias
    out = host(x)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    out.sum().backward()
    assert x.grad is not None and part.lora_A.weight.grad is not None and host.weight.grad is None


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("use_dora", [False, True])
def test_hf_pefts_layer_gives_the_same_on_the_same_weights(use_dora: bool, dropout: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    base = nn.Sequential(nn.Linear(5, 4))
    host = nn.Linear(5, 4)
    host.load_state_dict(base[0].state_dict())
    config = LoraConfig(target_modules=["0"], r=2, lora_alpha=3, use_dora=use_dora, lora_dropout=dropout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = inject_adapter_in_model(config, base)
    layer = theirs[0]
    part = (DoraDelta if use_dora else LoraDelta)(BaseLinear(host), 2, 1.5, dropout=dropout)
    with torch.no_grad():
        nn.init.normal_(layer.lora_B["default"].weight)
        part.lora_A.weight.copy_(layer.lora_A["default"].weight)
        part.lora_B.weight.copy_(layer.lora_B["default"].weight)
        if use_dora:
            layer.lora_magnitude_vector["default"].weight.uniform_(0.5, 2.0)
            part.lora_magnitude_vector.copy_(layer.lora_magnitude_vector["default"].weight)
    _attach(host, part)
    x = torch.randn(3, 5)
    torch.testing.assert_close(host.eval()(x), theirs.eval()(x))
    if dropout:
        rows = DrawnRows.of_step(0, 0, [0, 1, 2], [[1, 1, 1]], [1])
        with CpuPaths(), drawing(rows):
            ours = host.train()(x)
        with CpuPaths(), drawing(rows):
            torch.testing.assert_close(ours, theirs.train()(x))
