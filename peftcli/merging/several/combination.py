"""How several adapters become one: the options, checked before anything is opened. No torch here.

The names are those of HF peft's `add_weighted_adapter`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peftcli.errors import UserError
from peftcli.suggestions import did_you_mean, nearest

TYPES = {
    "cat": "the exact weighted sum of the changes; the default",
    "linear": "LoRA: factor by factor, as HF peft; other methods: the exact weighted sum",
    "svd": "the weighted sum, cut to a rank",
    "ties": "the largest values of each, of the sign that most agree on",
    "ties_svd": "the same of the whole changes, cut to a rank",
    "dare_linear": "a random share of each, scaled up, summed",
    "dare_linear_svd": "the same of the whole changes, cut to a rank",
    "dare_ties": "a random share of each, of the sign that most agree on",
    "dare_ties_svd": "the same of the whole changes, cut to a rank",
    "magnitude_prune": "the largest values of each, summed",
    "magnitude_prune_svd": "the same of the whole changes, cut to a rank",
}
"""What `--combination-type` takes: its name and what it does."""

SignMethod = Literal["total", "frequency"]
Pruning = Literal["magnitude", "random"]


@dataclass(frozen=True)
class Combination:
    """How several adapters become one.

    Args:
        type: one of `TYPES`; None leaves it to the adapters: `cat` for LoRA, else `linear`, and `svd` with a rank.
        weights: one for each adapter.
        density: share of the values that is kept of each adapter; None where nothing is pruned.
        majority_sign_method: what elects a sign: the sum of the values (`total`), or how many have it (`frequency`).
        rank: of the result, where it is cut; None takes the largest rank among the adapters.
        seed: of the random shares.
    """

    type: str | None
    weights: tuple[float, ...]
    density: float | None = None
    majority_sign_method: SignMethod = "total"
    rank: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """The type, of a combination whose type is decided."""
        assert self.type is not None
        return self.type

    @property
    def cut(self) -> bool:
        """Whether the combined change is cut to a rank."""
        return self.name.endswith("svd")

    @property
    def pruning(self) -> Pruning | None:
        """How each adapter is thinned out first."""
        if self.name.startswith("dare"):
            return "random"
        return "magnitude" if self.name.startswith(("ties", "magnitude")) else None

    @property
    def elects(self) -> bool:
        """Whether only values of the elected sign count, and their mean is taken."""
        return "ties" in self.name

    def described(self) -> str:
        """Return the type and its settings in words."""
        words = [self.name]
        if self.pruning:
            words.append(f"density {self.density:g}")
        if self.elects:
            words.append(f"signs by {self.majority_sign_method}")
        if self.pruning == "random":
            words.append(f"seed {self.seed}")
        return ", ".join(words)


def combination(
    kind: str | None,
    weights: Sequence[float],
    runs: int,
    density: float | None = None,
    majority_sign_method: str | None = None,
    rank: int | None = None,
    seed: int | None = None,
) -> Combination:
    """Return the combination that these options ask for.

    Args:
        kind: the type; None leaves it to the adapters.
        weights, density, majority_sign_method, rank, seed: as in `Combination`; None where not given.
        runs: number of adapters.

    Raises:
        UserError: an unknown type, options that do not go with it, or values out of their ranges.
    """
    _check_weights(weights, runs)
    if kind is not None and kind not in TYPES:
        choice = did_you_mean(nearest(kind, TYPES), f"choose one of: {', '.join(TYPES)}")
        raise UserError(f"--combination-type {kind}: there is no such type", suggestion=choice)
    asked = Combination(kind or ("svd" if rank else "cat"), tuple(weights))
    given = {
        "--density": (density, asked.pruning is not None, "ties, dare_* and magnitude_prune"),
        "--majority-sign-method": (majority_sign_method, asked.elects, "ties and dare_ties"),
        "--rank": (rank, asked.cut, "svd and the types that end in _svd"),
        "--seed": (seed, asked.pruning == "random", "dare_*"),
    }
    for option, (value, fits, of) in given.items():
        if value is not None and not fits:
            raise UserError(f"{option} does not go with {asked.name}: it is for {of}", suggestion=f"leave {option} out")
    if asked.pruning is not None:
        _check_density(density, asked.name)
    if majority_sign_method not in (None, "total", "frequency"):
        raise UserError(
            f"--majority-sign-method {majority_sign_method} is neither total nor frequency",
            suggestion="total goes by the sum of the values, frequency by how many have a sign",
        )
    sign: SignMethod = "frequency" if majority_sign_method == "frequency" else "total"
    wanted = kind or ("svd" if rank else None)
    return Combination(wanted, tuple(weights), density, sign, rank, seed or 0)


def _check_weights(weights: Sequence[float], runs: int) -> None:
    if len(weights) != runs:
        raise UserError(
            f"{runs} runs and {len(weights)} weights",
            suggestion="give one weight for each run: --weights 0.7,0.3",
        )
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise UserError("weights must be numbers, and not all of them zero", suggestion="write them as 0.7,0.3")


def _check_density(density: float | None, kind: str) -> None:
    if density is None:
        raise UserError(
            f"{kind} needs --density, the share of each adapter's values that is kept", suggestion="add --density 0.5"
        )
    if not 0 < density <= 1:
        raise UserError(
            f"--density {density:g} is not above 0 and at most 1", suggestion="0.5 keeps half of each adapter's values"
        )
