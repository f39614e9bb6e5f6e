"""Several runs as one run to merge: by LoRA factors where all have them, else by the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from peftcli.errors import UserError
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.merging.several.agreeing_runs import differing_texts, refuse_disagreeing
from peftcli.merging.several.combination import Combination
from peftcli.merging.several.combine_factors import combine_factors, overlapping, why_no_factors
from peftcli.merging.several.combine_weights import combine_weights


def combine_runs(runs: Sequence[RunToMerge], how: Combination) -> RunToMerge:
    """Return one run for several.

    Args:
        runs: opened runs.
        how: the combination.

    Raises:
        UserError: the runs do not agree, or the type does not go with their methods.
    """
    refuse_disagreeing(runs)
    reasons = {run.directory: reason for run in runs if (reason := why_no_factors(run))}
    reasons = reasons or overlapping(runs)
    decided = replace(how, type=how.type or ("linear" if reasons else "cat"))
    if reasons and decided.name == "cat":
        where, reason = next(iter(reasons.items()))
        raise UserError(
            f"{where}: cat puts LoRA factors side by side, and {reason}",
            suggestion="use --combination-type linear, which adds the changes of the weights, exactly",
        )
    made = combine_weights(runs, decided) if reasons else combine_factors(runs, decided)
    words = ", ".join(f"{weight:g} x {run.directory}" for weight, run in zip(how.weights, runs, strict=True))
    what = "the sum" if decided.name in ("cat", "svd") else decided.described()
    notes = [note for run in (*runs, made) for note in run.notes] + differing_texts(runs)
    notes.append(f"{what} of {len(runs)} adapters: {words}")
    if decided.cut:
        rank = "the largest rank among them" if decided.rank is None else f"rank {decided.rank}"
        notes.append(f"cut to {rank} by singular values")
    if reasons and decided.cut:
        notes.append("biases and norms are combined as they are: only matrices are cut to a rank")
    methods = dict.fromkeys(run.recipe.method.name for run in runs)
    return replace(made, notes=list(dict.fromkeys(notes)), method=" + ".join(methods))
