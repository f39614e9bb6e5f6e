"""The function that runs experts with parts, registered in transformers' public `ExpertsInterface`.

Tokens are sorted by expert; each expert's rows go through its weight and through the parts that change it, and then
back to their places. Without parts it computes what transformers' `grouped_mm` does, expert by expert.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.integrations.moe import ExpertsInterface

from peftcli.layers.added_modules import ADDED
from peftcli.layers.expert_parts.expert_part import ExpertsView
from peftcli.layers.site import Site

FUNCTION_NAME = f"{ADDED}experts"
"""How transformers calls this function."""
_SITE_NAME = f"{ADDED}experts_site"


class ExpertsSite(Site):
    """The parts that change the experts of one module; `run_experts` looks for it below that module.

    Attributes:
        before: what ran the experts before (`get_experts_implementation`); None while nothing was switched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, str | None] | None = None


def experts_site(host: nn.Module) -> ExpertsSite:
    """Return the site of a module that holds experts, made on the first call."""
    existing = host._modules.get(_SITE_NAME)
    if isinstance(existing, ExpertsSite):
        return existing
    site = ExpertsSite()
    host.add_module(_SITE_NAME, site)
    return site


def register() -> None:
    """Make the function known to transformers; more than once does no harm."""
    ExpertsInterface.register(FUNCTION_NAME, run_experts)


def sites_of(model: nn.Module) -> list[ExpertsSite]:
    """Return the sites of all experts of a model."""
    return [module for module in model.modules() if isinstance(module, ExpertsSite)]


def run_experts(host: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return what the experts make of every token, weighted and summed.

    Args:
        host: the module that holds the experts' weights.
        hidden_states: (tokens, width).
        top_k_index: (tokens, k), the experts of each token; a number beyond the last is nobody's.
        top_k_weights: (tokens, k), how much each counts.

    Returns:
        (tokens, width), of the type of `hidden_states`.
    """
    tokens, width = hidden_states.shape
    chosen = top_k_index.reshape(tokens, -1)
    each = chosen.shape[1]
    numbers, order = torch.sort(chosen.flatten(), stable=True)
    counts = _counts(numbers, host.num_experts)
    served = sum(counts)
    rows = hidden_states[order[:served] // each].split_with_sizes(counts)
    first = "gate_up_proj" if host.has_gate else "up_proj"
    made = torch.cat(_project(host, first, rows))
    made = host._apply_gate(made) if host.has_gate else host.act_fn(made)
    made = torch.cat(_project(host, "down_proj", made.split_with_sizes(counts)))
    if host.has_post_expert_norm:
        made = host.post_expert_norm(made)
    made = made * top_k_weights.reshape(-1)[order[:served], None]
    if served < len(order):
        made = torch.cat([made, made.new_zeros(len(order) - served, width)])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return made[back].view(tokens, each, width).sum(dim=1).to(hidden_states.dtype)


def _project(host: Any, name: str, rows: tuple[Tensor, ...]) -> list[Tensor]:
    """Return every expert's rows after one projection and the parts that change it."""
    site, view = host._modules.get(_SITE_NAME), ExpertsView(host, name)
    parts = [part for part in site.parts if part.enabled and part.base.parameter == name] if site is not None else []
    weights, biases = view.weights(), view.biases()
    entering = [change for part in parts if (change := part.entering()) is not None]
    leaving = [change for part in parts if (change := part.leaving(weights, biases)) is not None]
    made = []
    for expert, x in enumerate(rows):
        for enter in entering if len(x) else ():
            x = enter(expert, x)
        y = F.linear(x, weights[expert], biases[expert] if biases else None)
        for leave in leaving if len(x) else ():
            y = leave(expert, x, y)
        made.append(y)
    return made


def _counts(numbers: Tensor, experts: int) -> list[int]:
    """Return how many rows each expert gets; an even share where values are not known, as in estimates."""
    if numbers.is_meta or isinstance(numbers, FakeTensor):
        share, rest = divmod(len(numbers), experts)
        return [share + (expert < rest) for expert in range(experts)]
    counts: list[int] = torch.bincount(numbers, minlength=experts)[:experts].tolist()
    return counts
