"""Tokens a second that this machine was measured to train with: kept, so that later estimates can tell a time."""

from __future__ import annotations

import json

import torch

from peftcli.assembly.machine_answers import Answer, about_steps, keep_answer, kept_answer, machine
from peftcli.recipe.schema import Recipe


def _question(recipe: Recipe, device: torch.device, shape: dict[str, int], recomputes: bool) -> dict[str, str]:
    """Return what the rate of a recipe depends on besides the rows."""
    about = {**about_steps(recipe), "shape": shape, "recomputes": recomputes}
    if recipe.training.torch_compile is True:
        about["compiled"] = True
    return {"asked": "tokens a second", **machine(device), "about": json.dumps(about, sort_keys=True)}


def kept_rate(recipe: Recipe, device: torch.device, shape: dict[str, int], recomputes: bool) -> float | None:
    """Return the tokens a second that were measured for such a run; None without a measurement."""
    answer = kept_answer(_question(recipe, device, shape, recomputes))
    return None if answer is None or answer.ratio <= 0 else answer.ratio


def keep_rate(recipe: Recipe, device: torch.device, shape: dict[str, int], recomputes: bool, rate: float) -> None:
    """Keep a measured rate; the first one holds."""
    if rate > 0:
        keep_answer(_question(recipe, device, shape, recomputes), Answer(faster=True, ratio=float(rate)))
