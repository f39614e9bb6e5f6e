"""Which runs can be combined: those of one base, task, set of labels and vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peftcli.adapters.format import base_of
from peftcli.errors import UserError
from peftcli.merging.run_to_merge import RunToMerge, whole_tensors


def refuse_disagreeing(runs: Sequence[RunToMerge]) -> None:
    """Refuse runs that differ in what one model cannot have twice.

    Raises:
        UserError: names two runs and the difference.
    """
    first = runs[0]
    for run in runs:
        if run.adapter is None:
            raise UserError(
                f"{run.directory} left a complete model, no adapter: {run.recipe.method.name} cannot be combined",
                suggestion="combine runs of adapters",
            )
        if run.adapter.meta.token_rows:
            raise UserError(
                f"{run.directory} trained rows of single tokens, whose values cannot be combined with those of others",
                suggestion="merge it on its own, or train the runs with model.new_special_tokens: {train: false}",
            )
        for what, own, other in (
            ("task", run.recipe.task, first.recipe.task),
            ("labels", run.labels, first.labels),
            ("added tokens", _added_tokens(run), _added_tokens(first)),
        ):
            if own != other:
                raise UserError(
                    f"{run.directory} and {first.directory} differ in {what}: {own} and {other}",
                    suggestion="train them with the same task, labels and vocabulary",
                )
        if not _same_base(run, first):
            names = dict.fromkeys((run.spec.name_or_path, first.spec.name_or_path))
            of = " and ".join(names) if len(names) > 1 else f"{next(iter(names))}, whose files changed in between"
            raise UserError(
                f"{run.directory} and {first.directory} differ in base: they were trained on {of}",
                suggestion="adapters of one base can be summed: train one of them again",
            )


def differing_texts(runs: Sequence[RunToMerge]) -> list[str]:
    """Return a note if the runs learnt different templates or ends of an answer."""
    if all(run.texts == runs[0].texts for run in runs):
        return []
    return [f"the runs learnt different chat templates or ends of an answer: those of {runs[0].directory} are taken"]


def averages(
    runs: Sequence[RunToMerge], weights: Sequence[float], method_names: Sequence[frozenset[str]] | None = None
) -> dict[str, Tensor]:
    """Return the weighted mean of heads and of modules trained whole.

    Args:
        method_names: for each run, the parameters that its method changes itself: they are no modules trained whole.

    Raises:
        UserError: the runs trained different modules whole, or the weights sum to zero.
    """
    states = [run.adapter.state for run in runs if run.adapter is not None]
    own = method_names or [frozenset()] * len(runs)
    names = [
        [name for name in whole_tensors(run.model, state) if name not in method]
        for run, state, method in zip(runs, states, own, strict=True)
    ]
    if any(set(found) != set(names[0]) for found in names):
        raise UserError(
            "the runs trained different modules whole (modules_to_save), which cannot be averaged",
            suggestion="train them with the same modules_to_save",
        )
    if names[0] and not sum(weights):
        raise UserError(
            "the weights sum to zero, and the runs have heads to average", suggestion="choose weights of another sum"
        )
    shares = [weight / sum(weights) for weight in weights] if names[0] else []
    return {
        name: torch.stack([share * state[name].float() for share, state in zip(shares, states, strict=True)]).sum(0)
        for name in names[0]
    }


def _added_tokens(run: RunToMerge) -> list[str]:
    """Return the tokens that the run's tokenizer has beside its vocabulary file's."""
    return sorted(run.tokenizer.get_added_vocab())


def _same_base(run: RunToMerge, other: RunToMerge) -> bool:
    """Return whether two adapters were trained on the same weights, wherever they lay; by name if that is not known."""
    assert run.adapter is not None and other.adapter is not None  # refuse_disagreeing
    own, others = base_of(run.adapter.meta), base_of(other.adapter.meta)
    if own is None or others is None:
        return run.spec.name_or_path == other.spec.name_or_path
    return own.same_files(others)
