"""What the tasks' records promise about libraries, metrics and their own files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import peftcli.tasks
from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.tasks.task_info import TaskInfo
from peftcli.tasks.task_table import TASKS, task_info

INFOS = list(NAMES.tasks.values())
ROOM = Path(peftcli.tasks.__file__).parent


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_the_libraries_have_what_a_record_names(info: TaskInfo) -> None:
    import peft
    import transformers
    from transformers.models.auto import modeling_auto

    assert issubclass(getattr(transformers, info.auto_class), modeling_auto._BaseAutoModelClass)
    assert getattr(modeling_auto, info.mapping) is getattr(transformers, info.auto_class)._model_mapping
    assert info.hf_task_type in list(peft.TaskType)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_the_metrics_computed_unasked_are_metrics_of_the_kind(info: TaskInfo) -> None:
    for kind, metrics in info.predictions.items():
        assert set(metrics) <= set(NAMES.metrics[kind])


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_a_format_serves_it(info: TaskInfo) -> None:
    assert [known for known in NAMES.formats.values() if info.rows in known.makes]


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_a_task_is_one_file(info: TaskInfo) -> None:
    assert TASKS[info.name].__module__ == f"peftcli.tasks.{info.name}" and (ROOM / f"{info.name}.py").is_file()


def test_records_are_read_without_heavy_libraries() -> None:
    heavy = ("torch", "transformers", "numpy", "sklearn", "pyarrow")
    probe = f"import peftcli.names, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_task_is_told_the_others() -> None:
    with pytest.raises(UserError, match=r"no task 'casual_lm'\n.*causal_lm"):
        task_info("casual_lm")
