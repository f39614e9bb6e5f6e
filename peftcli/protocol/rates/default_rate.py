"""The default learning rate: a function of the method, its hyper-parameters, and the kind and width of the model.

    rate = rate of the method on the demo
           x (the exemplar's rate on such a model / its rate on the demo)
           x what the hyper-parameters change

The demo is an encoder of width 384, the only model on which every method was measured. The exemplar is the best known
method among those that train the same kind of parameter. `rate_evidence.yaml` has the figures and their sources. The
rate is a continuous function of the width and never rises with it.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftcli.protocol.method import Method
from peftcli.protocol.rates.rate_evidence import RateGroup, RatePoint, points_for, rate_evidence
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.preference_losses import DEFAULT_LOSS, PREFERENCE_LOSSES
from peftcli.tasks.task_info import ModelKind
from peftcli.tasks.task_table import task_info

if TYPE_CHECKING:
    from peftcli.models.anatomy import Anatomy

LARGEST_CHANGE = 4.0
"""Hyper-parameters with an exponent (alpha, the rank, LoRA+'s ratio) change the rate by this factor at most."""

NEAR = 1.5
"""A point speaks for widths up to this factor away from its own."""


@dataclass(frozen=True)
class DefaultRate:
    """A default learning rate.

    Args:
        value: the peak rate, in two digits.
        reason: what it is a default for and what it rests on, in one line with the sources' ids.
        sources: their ids.
        scopes: what was measured there, one for each point and setting that was used.
        extrapolated: whether nobody measured this method near this width on this kind of model.
    """

    value: float
    reason: str
    sources: tuple[str, ...]
    scopes: tuple[str, ...]
    extrapolated: bool


def default_rate(method: Method[Any], params: MethodParams | None, kind: ModelKind, width: int) -> DefaultRate:
    """Return the default learning rate, with AdamW.

    Args:
        method: the method, for its record and its settings.
        params: its hyper-parameters; None for the defaults, also of a method that has no complete ones.
        kind: of the model.
        width: hidden size of the model.
    """
    evidence = rate_evidence()
    group = evidence.groups[method.info.trains]
    points = points_for(group, kind)
    asked = method.rate_settings(params) if params is not None else {}
    changed = {name: value for name, value in asked.items() if evidence.settings[name].holds_on(kind)}
    rate = method.info.learning_rate * interpolated(points, width) / group.demo_rate * _times(changed)
    used = _near(points, width)
    settings = [evidence.settings[name] for name in changed]
    own = _measured(method, group, kind, width, used) and all(one.kind != "extrapolated" for one in settings)
    says = [one.says for one in settings]
    ids = [*(point.source for point in used), *(one.source for one in settings)]
    if not own:
        says.append("extrapolated")
    reason = f"default for {method.info.name} on {_MODELS[kind]} of width {width} [{', '.join(dict.fromkeys(ids))}]"
    scopes = dict.fromkeys([*(point.scope for point in used), *(one.scope for one in settings)])
    return DefaultRate(
        two_digits(rate), "; ".join([reason, *says]), tuple(dict.fromkeys(ids)), tuple(scopes), extrapolated=not own
    )


def rate_of_task(rate: DefaultRate, task: str, loss_type: str | None) -> DefaultRate:
    """Return a default rate for a task: preference tuning takes a share of supervised fine-tuning's, by its loss."""
    if task_info(task).rows != "preferences":
        return rate
    loss = loss_type or DEFAULT_LOSS
    share = PREFERENCE_LOSSES[loss].rate
    reason = f"{share:g} x the {rate.reason}; preference tuning moves a fine-tuned model (loss {loss})"
    return replace(rate, value=two_digits(share * rate.value), reason=reason)


_MODELS = {"encoder": "an encoder", "decoder": "a decoder", "encoder_decoder": "an encoder-decoder"}


def model_kind(anatomy: Anatomy) -> ModelKind:
    """Return what stacks a model has."""
    stacks = {stack for stack, paths in anatomy.layers.items() if paths}
    if stacks == {"encoder", "decoder"}:
        return "encoder_decoder"
    return "encoder" if stacks == {"encoder"} else "decoder"


def interpolated(points: Sequence[RatePoint], width: int) -> float:
    """Return the rate at a width: a straight line between points in the logarithms, constant beyond them."""
    place = bisect([point.width for point in points], width)
    if place == 0 or place == len(points):
        return points[max(0, place - 1)].rate
    low, high = points[place - 1], points[place]
    share = math.log(width / low.width) / math.log(high.width / low.width)
    return low.rate * math.pow(high.rate / low.rate, share)


def two_digits(rate: float) -> float:
    """Return a rate as people write it: 0.000877 is 8.8e-4."""
    return float(f"{rate:.1e}")


def _times(changed: Mapping[str, float]) -> float:
    """Return the factor of the hyper-parameters that differ from the defaults."""
    times = 1.0
    for name, value in changed.items():
        setting = rate_evidence().settings[name]
        power = math.pow(value, setting.exponent)
        times *= setting.factor * min(LARGEST_CHANGE, max(1 / LARGEST_CHANGE, power))
    return times


def _near(points: Sequence[RatePoint], width: int) -> list[RatePoint]:
    """Return the points on both sides, or the one that is at most `NEAR` away."""
    closest = min(points, key=lambda point: abs(math.log(width / point.width)))
    if _close(closest, width):
        return [closest]
    place = bisect([point.width for point in points], width)
    return list(points[max(0, place - 1) : place + 1])


def _close(point: RatePoint, width: int) -> bool:
    return max(width, point.width) <= NEAR * min(width, point.width)


def _measured(method: Method[Any], group: RateGroup, kind: ModelKind, width: int, used: Sequence[RatePoint]) -> bool:
    """Return whether somebody measured this method there: any method on the demo, elsewhere the exemplar alone."""
    near = len(used) == 1 and _close(used[0], width) and used[0].kind != "extrapolated"
    on_demo = kind == "encoder" and used[0].width == rate_evidence().demo_width
    return near and (method.info.name == group.exemplar or on_demo)
