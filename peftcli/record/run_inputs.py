"""What determines a run's result besides its recipe: what the recipe's names pointed at, and what was decided.

A checkpoint and summary.json hold it, so that a run that goes on, or is used, is compared with what it began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftcli.data.rows.row_fingerprint import SAMPLE
from peftcli.errors import UserError
from peftcli.typed_record import record_of

WRITERS = ("tokenizers", "transformers")
"""Libraries of which another version may write the same tokenizer in another way."""


@dataclass(frozen=True)
class RunInputs:
    """Digests and versions. None is not known, and not compared.

    Args:
        train_rows: `row_fingerprint` of the training rows; None of a stream.
        train_count: how many there are.
        validation_rows: the same of each validation set, by name.
        contents: `PreparedData.contents`.
        tokenizer: `tokenizer_fingerprint`.
        template: a hash of the chat template that rows are made with, or `NO_TEMPLATE`.
        base: `both_fingerprints` of its files.
        processes: that train together.
        device: its name.
        versions: of peftcli and the libraries that compute.
        decisions: what was probed or chosen on this machine, in words.
        step_rows: rows of a step, over all processes.
    """

    train_rows: str | None = None
    train_count: int | None = None
    validation_rows: dict[str, str] | None = None
    contents: dict[str, str] | None = None
    tokenizer: str | None = None
    template: str | None = None
    base: str | None = None
    processes: int | None = None
    device: str | None = None
    versions: dict[str, str] | None = None
    decisions: dict[str, str] | None = None
    step_rows: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: what is known."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> RunInputs:
        """Return what `as_dict` gave; keys of a later version are passed over, those of an earlier one not known.

        Of a record with a value of another kind nothing is known: it was edited.
        """
        try:
            return record_of(cls, data or {}, Path())
        except UserError:
            return cls()


NO_TEMPLATE = "none"


@dataclass(frozen=True)
class Differences:
    """What changed, in words.

    Args:
        decisive: with it, the result is another one.
        possible: with it, the result can be another one, if only in the last digits.
    """

    decisive: list[str]
    possible: list[str]


def differences(then: RunInputs, now: RunInputs) -> Differences:
    """Return what changed between two records; what one of them does not know is passed over."""
    decisive, possible = [*_of_rows(then, now)], [*_of_machine(then, now)]
    (decisive if _decides(then, now) else possible).extend(_of_files(then, now))
    if _differ(then.tokenizer, now.tokenizer):
        rewritten = _same_rows(then, now) and any(_version(then, name) != _version(now, name) for name in WRITERS)
        (possible if rewritten else decisive).append("the tokenizer")
    if _differ(then.template, now.template):
        decisive.append("the chat template")
    if _differ(then.base, now.base):
        decisive.append("the weights or the config of the base model")
    if _differ(then.processes, now.processes):
        # an earlier version did not record the rows of a step
        known = possible if then.step_rows is not None else decisive
        known.append(f"the number of processes ({then.processes} before, {now.processes} now)")
    return Differences(decisive, possible)


def _of_rows(then: RunInputs, now: RunInputs) -> Iterator[str]:
    if _differ(then.train_rows, now.train_rows):
        counts = f" ({then.train_count:,} before, {now.train_count:,} now)" if _counts_differ(then, now) else ""
        yield f"the training rows{counts}"
    if then.validation_rows is not None and now.validation_rows is not None:
        for name in {**then.validation_rows, **now.validation_rows}:
            if then.validation_rows.get(name) != now.validation_rows.get(name):
                yield f"the validation rows{f' of {name}' if name else ''}"


def _of_files(then: RunInputs, now: RunInputs) -> Iterator[str]:
    """Name the files with other bytes, unless they are named by their rows already."""
    if then.contents is None or now.contents is None or [*_of_rows(then, now)]:
        return
    for name in {**then.contents, **now.contents}:
        if then.contents.get(name) != now.contents.get(name):
            yield f"the data {name}" + (" (the rows are the same)" if not _decides(then, now) else "")


def _decides(then: RunInputs, now: RunInputs) -> bool:
    """Return whether other bytes can mean other rows: those of a stream, or more than are compared one by one."""
    return then.train_rows is None or now.train_rows is None or (now.train_count or 0) > SAMPLE


def _of_machine(then: RunInputs, now: RunInputs) -> Iterator[str]:
    for old, new in ((then.versions, now.versions), (then.decisions, now.decisions)):
        if old is not None and new is not None:
            changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            yield from (f"{name} ({old.get(name, 'none')} before, {new.get(name, 'none')} now)" for name in changed)
    if _differ(then.device, now.device):
        yield f"the device ({then.device} before, {now.device} now)"


def _same_rows(then: RunInputs, now: RunInputs) -> bool:
    return now.train_rows is not None and then.train_rows == now.train_rows and not [*_of_rows(then, now)]


def _counts_differ(then: RunInputs, now: RunInputs) -> bool:
    return then.train_count is not None and now.train_count is not None and then.train_count != now.train_count


def _version(inputs: RunInputs, name: str) -> str | None:
    return (inputs.versions or {}).get(name)


def _differ(old: object, new: object) -> bool:
    return old is not None and new is not None and old != new
