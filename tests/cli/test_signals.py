"""SIGTERM and Ctrl-C at any moment of a command: exit code 130, one sentence, and nothing half written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftcli import stop_signals
from peftcli.cli.app import main
from peftcli.stop_signals import interrupted_by_signals, stop_on_signal
from tests.command_line import Cli, Workspace, write_jsonl
from tests.moments import signal_at

ASKING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


@pytest.fixture(scope="module")
def trained(workspace: Workspace) -> Path:
    """Return a run of a few steps."""
    with pytest.raises(SystemExit):
        main(["train", str(workspace.recipe("trained", training__max_steps=2)), "--quiet"])
    return workspace.run("trained")


@pytest.fixture
def heard() -> Iterator[None]:
    """Have the default handlers, also where the tests run under `nohup`, which ignores SIGHUP."""
    before = {number: signal.getsignal(number) for number in ASKING}
    for number in set(ASKING) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


MOMENTS = {
    "eval": ("open", "config.json", ()),
    "predict": ("open", "predictions.jsonl", ("--input", "{rows}", "-o", "{out}/predictions.jsonl")),
    "merge": ("open", ".partial-merged", ("-o", "{out}/merged")),
    "export": ("open", ".partial-exported", ("-o", "{out}/exported")),
}
"""Command -> an audit event in its middle, and its arguments."""


@pytest.mark.parametrize("command", MOMENTS)
@pytest.mark.parametrize("number", ASKING)
def test_a_command_leaves_nothing_half_written(
    trained: Path, cli: Cli, tmp_path: Path, heard: None, command: str, number: signal.Signals
) -> None:
    event, path, arguments = MOMENTS[command]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "the cat red story 1"}])
    before, handlers = sorted(trained.rglob("*")), [signal.getsignal(one) for one in ASKING]
    (tmp_path / "out").mkdir()
    with signal_at(number, event, path):
        done = cli(command, trained, *(word.format(rows=rows, out=tmp_path / "out") for word in arguments))
    assert done.code == 130
    assert "stopped" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not list((tmp_path / "out").iterdir())
    assert sorted(trained.rglob("*")) == before
    assert [signal.getsignal(one) for one in ASKING] == handlers


def test_training_that_is_stopped_before_its_first_step_can_be_started_again(workspace: Workspace, cli: Cli) -> None:
    recipe = workspace.recipe("early", training__max_steps=1)
    for event, path in {"open": "colours.jsonl", "os.rename": "recipe.yaml"}.items():
        with signal_at(signal.SIGTERM, event, path):
            done = cli("train", recipe, "--quiet")
        assert done.code == 130
        assert "stopped before" in done.err
        assert not workspace.run("early").exists()
    assert cli("train", recipe, "--quiet").code == 0


def test_a_second_signal_at_once_is_the_same_request_and_disturbs_no_tidying() -> None:
    tidied = []
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals() as stop:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            tidied.append(stop.requested)
    assert tidied == [True]


def test_a_later_signal_is_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted_by_signals(), stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        monkeypatch.setattr(stop_signals, "SAME_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows closes no terminals by signals")
def test_nohup_stays_in_force_and_an_ignored_ctrl_c_does_not() -> None:
    """A shell without job control has background commands ignore SIGINT; they are still to be stopped."""
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)]
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
