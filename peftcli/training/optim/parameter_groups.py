"""Which trainable parameter gets which learning rate and whether it decays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import TrainingSpec


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    spec: TrainingSpec,
    learning_rate: float,
    *,
    head: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    multiplicative: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return optimizer groups: parameters that share a learning rate and a decay.

    The rate of a parameter is that of the first expression in `lr_groups` that matches its name, else the head's, else
    the peak rate times the method's ratio. Biases, norms, other vectors and whatever multiplies what is there do not
    decay.

    Args:
        parameters: every trainable parameter by name.
        learning_rate: the peak rate.
        head: names of the task head's parameters.
        ratios: the method's own factors by name (LoRA+).
        multiplicative: names of parameters that multiply (`Attachment.multiplicative`), whatever their shape.

    Raises:
        UserError: an expression does not compile or matches no name.
    """
    patterns = _patterns(spec.lr_groups, parameters)
    head, ratios, multiplicative = set(head), ratios or {}, set(multiplicative)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        rate = learning_rate * ratios.get(name, 1.0)
        if name in head and spec.head_learning_rate is not None:
            rate = spec.head_learning_rate
        rate = next((own for pattern, own in patterns if pattern.search(name)), rate)
        matrix = parameter.ndim >= 2 and not name.endswith("bias") and name not in multiplicative
        decay = spec.weight_decay if matrix else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def _patterns(lr_groups: Mapping[str, float], names: Iterable[str]) -> list[tuple[re.Pattern[str], float]]:
    patterns, problems = [], []
    names = list(names)
    for text, rate in lr_groups.items():
        key = f"training.lr_groups.{text}"
        try:
            pattern = re.compile(text)
        except re.error as error:
            problems.append(Problem(f"not a regular expression: {error}", key=key))
            continue
        if not any(pattern.search(name) for name in names):
            some = ", ".join(names[:3])
            problems.append(Problem("matches no trainable parameter", key=key, suggestion=f"names look like: {some}"))
        patterns.append((pattern, rate))
    if problems:
        raise UserError(problems)
    return patterns


def shadowed_notes(lr_groups: Mapping[str, float], names: Iterable[str]) -> list[str]:
    """Return a note for each expression that sets no rate, since earlier ones match all parameters that it matches."""
    left, notes = list(names), []
    for text in lr_groups:
        own = [name for name in left if re.search(text, name)]
        if not own:
            told = f"training.lr_groups.{text} has no effect: an expression before it matches the same parameters"
            notes.append(f"{told}; put it before the more general ones")
        left = [name for name in left if name not in own]
    return notes
