"""Everything that a recipe can name, for `recipe`, which is handed it and knows no name itself. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftcli.data.recognition.format_table import FORMATS, format_of_plugin
from peftcli.data.recognition.row_format import RowFormat
from peftcli.protocol.registry import registry
from peftcli.recipe.entry_points import WithPlugins
from peftcli.recipe.method_facts import Registry
from peftcli.record.callback import Callback, find_callback
from peftcli.tasks.metric_table import METRICS, MetricInfo
from peftcli.tasks.task_info import TaskInfo
from peftcli.tasks.task_table import TASKS


@dataclass(frozen=True)
class RecipeNames:
    """What a recipe can name, by name.

    Args:
        methods: looked up one by one, since each is a module of its own, perhaps of another package.
        tasks, formats: the order is that of the documentation.
        metrics: by kind of prediction.
        callbacks: all are those of plug-ins.
    """

    methods: Registry
    tasks: Mapping[str, TaskInfo]
    formats: Mapping[str, RowFormat]
    metrics: Mapping[str, Mapping[str, MetricInfo]]
    callbacks: Mapping[str, type[Callback]]


NAMES = RecipeNames(
    methods=registry,
    tasks={name: task.info for name, task in TASKS.items()},
    # recognition begins with the most special one, a reader with the plainest
    formats=WithPlugins({known.name: known for known in reversed(FORMATS)}, format_of_plugin),
    metrics=METRICS,
    callbacks=WithPlugins({}, find_callback),
)
