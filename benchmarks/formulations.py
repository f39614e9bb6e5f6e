"""The methods that HF peft lacks, in plain PyTorch, as their official code or AdapterHub writes them down.

AdapterHub's `adapters` library cannot be the baseline here: every release pins transformers 4, and this project needs
5, so that one environment never holds both. Trained parameters have the names under which this project saves them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """Houlsby's adapter: h + up(gelu(down(h)))."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.up(functional.gelu(self.down(hidden)))


class PhmLayer(nn.Module):
    """Compacter's projection, as rabeehk/compacter writes it: the Kronecker products are summed to a whole matrix."""

    def __init__(self, rule: nn.Parameter, width_in: int, width_out: int, rank: int = 1) -> None:
        super().__init__()
        n = len(rule)
        self.shared = (rule,)  # registered once, at the model
        self.s, self.t = (
            nn.Parameter(torch.zeros(n, width_in // n, rank)),
            nn.Parameter(torch.zeros(n, rank, width_out // n)),
        )
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, hidden: Tensor) -> Tensor:
        rule, each = self.shared[0], self.s @ self.t  # (n, n, n), (n, in / n, out / n)
        products = torch.einsum("iab,icd->iacbd", rule, each)
        weight = products.reshape(len(rule), rule.shape[1] * each.shape[1], -1).sum(0)
        return hidden @ weight + self.bias


class Compacter(nn.Module):
    """h + up(gelu_new(down(h))) with hypercomplex projections."""

    def __init__(self, rule: nn.Parameter, width: int, size: int) -> None:
        super().__init__()
        self.down, self.up = PhmLayer(rule, width, size), PhmLayer(rule, size, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.up(functional.gelu(self.down(hidden), approximate="tanh"))


def attach(method: str, model: Any) -> Any:
    """Freeze a model, add a method's modules, and let them, the norms or biases they train and the head learn."""
    model.requires_grad_(False)
    if method == "bitfit":
        trained = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    else:
        trained = _add_modules(method, model)
    heads = [name for name, _ in model.named_parameters() if name.startswith(("classifier.", "score."))]
    for name in (*trained, *heads):
        model.get_parameter(name).requires_grad_(True)
    return model


def _add_modules(method: str, model: Any) -> list[str]:
    """Put one module behind the last projection of every attention and feed-forward; return what learns."""
    width = model.config.hidden_size
    rule = nn.Parameter(torch.zeros(4, 4, 4))
    if method == "compacter":
        model.register_parameter("phm_rule", rule)
    ends = ("attention.output.dense", "output.dense", "o_proj", "down_proj")
    for path, host in list(model.named_modules()):
        if path.endswith(ends):
            if method == "adapter":
                host.adapter = Bottleneck(width, max(1, round(width / 16)))
            else:
                host.compacter = Compacter(rule, width, max(4, round(round(width / 32) / 4) * 4))
            host.register_forward_hook(_behind(getattr(host, method)))
    norms = [name for name, _ in model.named_parameters() if "norm" in name.lower()]
    return [*norms, *(name for name, _ in model.named_parameters() if f".{method}." in name or name == "phm_rule")]


def _behind(module: nn.Module) -> Any:
    return lambda _host, _inputs, output: module(output)


def load_values(model: Any, values: dict[str, Tensor]) -> None:
    """Copy the initial values into place; every trained parameter has one, and every value a parameter."""
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    values = {name.replace("compacter.phm_rule", "phm_rule"): value for name, value in values.items()}
    if own.keys() != values.keys():
        raise SystemExit(f"the two sides train different parameters: {sorted(own.keys() ^ values.keys())[:5]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(values[name])
