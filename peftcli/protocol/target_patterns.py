"""Values for single targets: `rank_pattern` and `alpha_pattern`, by role or by the end of a module's path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import AfterValidator, Field

from peftcli.errors import UserError
from peftcli.recipe.method_params import IN_ORDER, NotNegative, Positive

if TYPE_CHECKING:
    from peftcli.models.targets.target import Target

Rank = Positive
Alpha = Annotated[int | float, Field(gt=0)]
Number = TypeVar("Number", int, float)


def _readable(value: dict[str, Number]) -> dict[str, Number]:
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return value


RankOrNonePattern = Annotated[dict[str, NotNegative], AfterValidator(_readable), IN_ORDER]
"""As `RankPattern`, where a target may be left out by rank 0."""
RankPattern = Annotated[dict[str, Rank], AfterValidator(_readable), IN_ORDER]
AlphaPattern = Annotated[dict[str, Alpha], AfterValidator(_readable), IN_ORDER]


def lora_scale(alpha: float, rank: int, *, rank_stabilised: bool) -> float:
    """Return what a low-rank product is multiplied by; `rank_stabilised` as in Kalajdzievski 2023."""
    return alpha / math.sqrt(rank) if rank_stabilised else alpha / rank


def pick(patterns: Mapping[str, Number], role: str | None, module: str, default: Number) -> Number:
    """Return the value of the first pattern that names a target, else the default."""
    return next((value for key, value in patterns.items() if names_target(key, role, module)), default)


def names_target(pattern: str, role: str | None, module: str) -> bool:
    """Tell whether a pattern is the target's role or block, or matches the end of its path, as HF peft matches."""
    if role is not None and pattern in (role, role.split(".")[0]):
        return True
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def refuse_idle_patterns(targets: Sequence[Target], options: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse patterns that name no target.

    Args:
        options: the method's patterns by key.

    Raises:
        UserError: names the first one, and the targets.
    """
    for option, patterns in options.items():
        for pattern in patterns:
            if not any(names_target(pattern, target.role, target.key) for target in targets):
                names = sorted({target.role or target.module.rsplit(".", 1)[-1] for target in targets})
                raise UserError(
                    f"method.{option}: {pattern!r} matches none of the {len(targets)} targets",
                    suggestion=f"use a role, or a regular expression on the end of a path; targets: {', '.join(names)}",
                )
