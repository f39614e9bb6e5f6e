"""Labels: their kind, their names in a fixed order, and the numbers that a model sees."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.data.read.nested_values import is_infinite
from peftcli.data.read.records import RowError, in_words
from peftcli.errors import Problem, UserError
from peftcli.tasks.task_info import LabelKind

Kind = LabelKind
_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")  # also as pandas writes a column of whole numbers with a gap
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)")


@dataclass(frozen=True)
class LabelSpec:
    """What the head predicts.

    Args:
        problem: kind of label.
        names: the file's own values as text, in the order of the model's outputs; empty for regression.
    """

    problem: Kind
    names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return max(1, len(self.names))

    @property
    def id2label(self) -> dict[int, str]:
        """Number to name, as the model's config holds it."""
        return dict(enumerate(self.names)) if self.names else {0: "score"}

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads."""
        return {"problem": self.problem, "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSpec:
        """Rebuild what `as_dict` returned."""
        return cls(data["problem"], tuple(data["names"]))


def label_name(value: Any) -> str:
    """Return a raw label as text: the file's own value.

    Raises:
        RowError: it is a list, an object, or infinite.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if is_infinite(value):
        raise RowError("the label is an infinite number", "a name or a number")
    if isinstance(value, int | float):
        return str(value)
    raise RowError(f"the label is {in_words(value)}", "a name or a number")


def label_list(value: Any) -> list[str]:
    """Return the names of a row with several labels, which may be none.

    Raises:
        RowError: it is not a list of names, or names one twice.
    """
    if not isinstance(value, list | tuple):
        raise RowError(f"the label is {value!r}, not a list", "a list of labels, as in the first rows")
    names = [label_name(item) for item in value]
    if any(isinstance(item, float) for item in value) or len(set(names)) < len(names):
        raise RowError(f"the labels {names} name one twice or are a 0/1 vector", "the names of the labels that apply")
    return names


def label_number(value: Any) -> float:
    """Return the value of a regression row.

    Raises:
        RowError: it is not a finite number.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):  # a whole number of hundreds of digits
        expected = "a number, as in most of the first rows (model.problem_type: single_label makes names of them)"
        raise RowError(f"the label {value!r} is not a number", expected) from None
    if not math.isfinite(number):
        raise RowError(f"the label is {number}", "a finite number")
    return number


def kind_of(values: Sequence[Any]) -> Kind:
    """Return the kind of some raw labels: lists are several labels, decimals are regression, all else are classes.

    Among decimals a few words are mistakes, not classes; among words a few numbers are classes.
    """
    if any(isinstance(value, list | tuple) for value in values):
        return "multi_label"
    texts = [repr(value) if isinstance(value, int | float) else str(value).strip() for value in values]
    decimals = [bool(_DECIMAL.fullmatch(text)) for text in texts]
    numbers = sum(bool(_INTEGER.fullmatch(text) or _DECIMAL.fullmatch(text)) for text in texts)
    return "regression" if any(decimals) and 2 * numbers > len(texts) else "single_label"


def order_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return label names in their order: by value if all are integers, else by name."""
    unique = set(names)
    if all(_INTEGER.fullmatch(name) for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name.partition(".")[0]), name)))
    return tuple(sorted(unique))


def check_names(spec: LabelSpec) -> None:
    """Raise a `UserError` when there is nothing to tell apart."""
    if spec.problem == "single_label" and len(spec.names) < 2:
        only = f"only the label {spec.names[0]!r}" if spec.names else "no label"
        raise UserError(
            Problem(
                f"the training rows have {only}",
                key="data.path",
                suggestion="classification needs two labels at least: name rows with more, or the column that holds "
                "them with data.columns: {label: COLUMN}",
            )
        )
    if spec.problem in ("multi_label", "token") and not spec.names:
        ours = "tags" if spec.problem == "token" else "label"
        remedy = f"name the column that holds them with data.columns: {{{ours}: COLUMN}}"
        raise UserError(Problem("the training rows have no label at all", key="data.path", suggestion=remedy))
