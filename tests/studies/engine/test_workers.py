"""Several workers on one study: each trial is trained once, a killed worker's trial goes on, Ctrl-C saves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftcli.studies.engine.study import Study
from tests.studies.engine.database_server import postgresql
from tests.studies.engine.small_study import ASKED, Worker, adapter_bytes, write_recipe

pytestmark = pytest.mark.skipif(os.name == "nt", reason="workers are killed by signals")
LONG = {"data__val_set_size": 4, "training__max_steps": 12, "training__eval_steps": 4, "training__save_steps": 4}
NAMES = ["a", "b", "c"]


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "journal":
        yield None
        return
    with postgresql() as url:
        yield url


def test_two_workers_share_a_study_and_one_is_killed(
    tmp_path: Path, recipe: Callable[..., Any], storage: str | None
) -> None:
    directory = tmp_path / "study"
    write_recipe(directory, recipe(**LONG))
    first = Worker(directory, NAMES, storage, hold="a@8")
    first.until("held", "a")
    second = Worker(directory, NAMES, storage)
    second.until("started", "b")  # not a, which the first one trains
    first.process.kill()
    first.end()
    assert first.of("started") == ["a"]
    code, errors = second.end()
    assert code == 0, errors
    assert sorted(second.of("started")) == NAMES and sorted(second.of("ended")) == NAMES
    assert "a is continued, left by a process that died" in second.of("note")
    steps = [line[2] for line in second.heard if line[:2] == ["evaluated", "a"]]
    assert steps == [8, 12]  # from the checkpoint of step 4, not from the start

    study = Study.open(directory, ASKED, storage=storage)
    states = [(trial.user_attrs["name"], trial.state.name) for trial in study.optuna.trials]
    assert sorted(states) == [(name, "COMPLETE") for name in NAMES]  # each once
    adapters = {adapter_bytes(directory / "trials" / name) for name in NAMES}
    assert len(adapters) == 1  # the same recipe: going on changed nothing
    third = Worker(directory, NAMES, storage)
    assert third.end()[0] == 0 and third.of("started") == [] and sorted(third.of("ended")) == NAMES


def test_ctrl_c_saves_what_runs_and_the_same_command_goes_on(tmp_path: Path, recipe: Callable[..., Any]) -> None:
    directory = tmp_path / "study"
    write_recipe(directory, recipe(**LONG))
    worker = Worker(directory, ["a"], hold="a@4")
    worker.until("held", "a")
    worker.process.send_signal(signal.SIGINT)
    code, errors = worker.end()
    assert code == 130 and "The same command continues" in errors
    assert Study.open(directory, ASKED).result("a") is None
    again = Worker(directory, ["a"])
    assert again.end()[0] == 0
    steps = [line[2] for line in again.heard if line[0] == "evaluated"]
    assert steps == [8, 12]  # its state after step 4 was saved
    assert again.of("note") == ["a is continued"]  # no kill is counted
