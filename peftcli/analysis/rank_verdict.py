"""Is the rank too high or too low? An answer from the spectra, with its evidence and the change to try.

The limits are rules of thumb, not measurements: a spectrum says what training used of the rank that it had, and only
a second training says whether another rank does better. So the answer proposes an experiment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

from peftcli.analysis.module_change import ModuleChange
from peftcli.analysis.spectrum import Spectrum
from peftcli.recipe.method_params import MethodParams

IDLE_SHARE = 0.5
"""A module whose effective rank is below this share of its rank does not use it."""
FLAT_SHARE, FLAT_RATIO = 0.8, 0.5
"""A spectrum is flat when the effective rank is above the first share, and the last value above this of the first."""

Answer = Literal["too high", "too low", "fits", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Args:
        answer: of the rank.
        text: with the evidence.
        change: overrides of the recipe to try, or None.
    """

    answer: Answer
    text: str
    change: tuple[str, ...] = ()

    def line(self) -> str:
        """Return one line for reading."""
        tried = f" Try {' '.join(self.change)} and compare eval_loss." if self.change else ""
        head = {"unknown": "rank: no answer", "fits": "rank: fits"}.get(self.answer, f"rank: {self.answer}")
        return f"{head}. {self.text}{tried}"

    def as_dict(self) -> dict[str, object]:
        """Return plain data for `--json`."""
        return {"answer": self.answer, "text": self.text, "change": list(self.change)}


def judge(rows: Sequence[ModuleChange], params: MethodParams) -> Verdict:
    """Answer from the modules with a low-rank change.

    Args:
        rows: all places of an adapter.
        params: of the method; its own name for the rank goes into the change to try.
    """
    spectra = [row.spectrum for row in rows if row.spectrum is not None]
    moved = [(row, row.spectrum) for row in rows if row.spectrum is not None and row.spectrum.norm > 0]
    if not spectra:
        return Verdict("unknown", f"{params.name} trains no low-rank change of a weight.")
    if not moved:
        return Verdict(
            "unknown", "Every change is zero: nothing was learnt; train longer or with a higher learning rate."
        )
    pruned = any((row.kept or 0) < (row.allotted or 0) for row, _ in moved)
    # AdaLoRA moves ranks between modules: each is judged by the ranks that it kept
    ranks = [len(spectrum.values) if pruned else row.room for row, spectrum in moved]
    rank = max(1, round(mean(ranks))) if pruned else max(ranks)
    if rank == 1:
        change = _change(params, 1, 4)
        return Verdict(
            "unknown", "With rank 1 there is only one singular value, which says nothing about higher ranks.", change
        )
    allotted = max(row.allotted or 0 for row, _ in moved)
    what = f"r = {rank}" if rank == allotted else f"the rank {rank} that r = {allotted} allows"
    if pruned:
        what = f"its ranks (kept: {min(ranks)} to {max(ranks)}, {rank} on average)"
    shares = [spectrum.effective_rank / own for own, (_, spectrum) in zip(ranks, moved, strict=True)]
    idle = sum(share < IDLE_SHARE for share in shares)
    flat = sum(
        own > 1 and share >= FLAT_SHARE and spectrum.flatness >= FLAT_RATIO
        for own, share, (_, spectrum) in zip(ranks, shares, moved, strict=True)
    )
    facts = _facts([spectrum for _, spectrum in moved])
    if idle > len(moved) / 2:
        return Verdict(
            "too high",
            f"In {idle} of {len(moved)} modules the effective rank is below half of {what} ({facts}).",
            _change(params, rank, _lower(moved, rank)),
        )
    if flat > len(moved) / 2:
        limit = min(min(row.shape) for row, _ in moved if row.shape)
        return Verdict(
            "too low",
            f"In {flat} of {len(moved)} modules the singular values are flat to the last of {what} ({facts}).",
            _change(params, rank, min(2 * rank, limit)) if limit > rank else (),
        )
    return Verdict("fits", f"Most modules use most of {what} without filling it evenly ({facts}).")


def _facts(spectra: Sequence[Spectrum]) -> str:
    effective = median(spectrum.effective_rank for spectrum in spectra)
    energy = median(spectrum.rank_of_energy(0.99) for spectrum in spectra)
    ratio = median(spectrum.flatness for spectrum in spectra)
    return f"medians: effective rank {effective:.1f}, {energy:g} for 99% of the energy, last over first {ratio:.2g}"


def _lower(moved: Sequence[tuple[ModuleChange, Spectrum]], rank: int) -> int:
    """Return the power of two that holds the effective rank of three modules in four, below `rank`."""
    effective = sorted(spectrum.effective_rank for _, spectrum in moved)
    wanted = effective[math.ceil(0.75 * len(effective)) - 1]
    power = math.ceil(math.log2(max(1.0, wanted)))
    return max(1, min(int(2**power), rank // 2))


def _change(params: MethodParams, rank: int, new: int) -> tuple[str, ...]:
    """Return the overrides that set another rank and leave the scale alpha / r as it was."""
    own = next((name for name in ("r", "target_r") if hasattr(params, name)), None)
    if own is None:
        return ()  # a composition: the rank is inside one of its parts
    value = getattr(params, own)
    new = max(1, round(value * new / rank))  # PiSSA's file and AdaLoRA's start have other ranks than the option
    changes = [f"method.{own}={new}"]
    start = getattr(params, "init_r", None)
    if own == "target_r" and start is not None and new > start:
        changes.append(f"method.init_r={round(start * new / value)}")
    alpha = getattr(params, "lora_alpha", None)
    if own == "r" and alpha is not None and not getattr(params, "use_rslora", False):
        changes.append(f"method.lora_alpha={alpha * new / value:g}")
    return () if new == value else tuple(changes)
