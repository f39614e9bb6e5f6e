"""What a recipe can name: methods, tasks, row formats, metrics. `recipe` knows none of them and is handed them all."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Union

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from peftcli.recipe.field_descriptions import members, unwrap
from peftcli.recipe.method_facts import Registry


class TaskFacts(Protocol):
    """The part of a task's record that recipes are checked against; `tasks.task_info.TaskInfo` says what each means."""

    @property
    def name(self) -> str:
        """As in the recipe."""

    @property
    def rows(self) -> str:
        """The kind of its rows."""

    @property
    def reads(self) -> str:
        """The kind of row that its model reads at once."""

    @property
    def label_kind(self) -> str | None:
        """The kind of its labels; None for a task without labels and without a head."""

    @property
    def predictions(self) -> Collection[str]:
        """The kinds of its predictions; `model.problem_type` chooses where there are several."""

    @property
    def generates(self) -> bool:
        """Whether a prediction is a generated text."""

    @property
    def packs(self) -> bool:
        """Whether several rows can be packed into one."""

    @property
    def why_not_split(self) -> str | None:
        """Why a long row cannot become several, None where it can."""


class FormatFacts(Protocol):
    """The part of a row format's record that recipes are checked against."""

    @property
    def makes(self) -> Collection[str]:
        """The kinds of rows that can be made of it."""


class MetricFacts(Protocol):
    """The part of a metric's record that recipes are checked against."""

    @property
    def several(self) -> bool:
        """Whether it gives several values."""


class Names(Protocol):
    """Everything that a recipe can name, by name."""

    @property
    def methods(self) -> Registry:
        """The methods."""

    @property
    def tasks(self) -> Mapping[str, TaskFacts]:
        """The tasks."""

    @property
    def formats(self) -> Mapping[str, FormatFacts]:
        """The row formats."""

    @property
    def metrics(self) -> Mapping[str, Mapping[str, MetricFacts]]:
        """The metrics by kind of prediction."""

    @property
    def callbacks(self) -> Container[str]:
        """The callbacks; all are plug-ins."""


@dataclass(frozen=True)
class NameOf:
    """Marks a field that holds the name of a task or a row format, or `auto` where that is allowed.

    The name is checked where `Names` are given as the context of the validation.
    """

    kind: Literal["tasks", "formats"]
    auto: bool = False

    def known(self, names: Names) -> tuple[str, ...]:
        """Return what the field may hold, without names of plug-ins."""
        found = self._named(names)
        return ("auto", *found) if self.auto else tuple(found)

    def _named(self, names: Names) -> Mapping[str, object]:
        return names.tasks if self.kind == "tasks" else names.formats

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of the text, and the check behind it."""
        return core_schema.with_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: str, info: ValidationInfo) -> str:
        if info.context is None or (self.auto and value == "auto"):
            return value
        if value not in self._named(info.context):
            raise PydanticCustomError("unknown_name", "there is no such name")
        return value


def spelled_out(annotation: Any, metadata: Collection[Any], names: Names) -> Any:
    """Return a field's annotation with the names that it may hold, as if the schema listed them."""
    alternatives = members(annotation)
    if len(alternatives) > 1:
        return Union[tuple(spelled_out(one, (), names) for one in alternatives)]  # noqa: UP007  # not known before
    mark = next((one for one in (*metadata, *unwrap(annotation)[1]) if isinstance(one, NameOf)), None)
    return annotation if mark is None else Literal[mark.known(names)]
