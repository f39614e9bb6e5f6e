"""From the end of a trial's process to its result."""

from __future__ import annotations

import time
from typing import Any, cast

from peftcli.record.run_directory import RunDirectory
from peftcli.studies.engine.process.trial_outcome import Outcome, curve_of
from peftcli.studies.engine.process.trial_process import TrialProcess
from peftcli.studies.engine.study_files import StudyFiles
from peftcli.studies.engine.trial import Trial, TrialResult, TrialState


def result_of(process: TrialProcess, outcome: Outcome, files: StudyFiles, host: str) -> TrialResult:
    """Return the result of a process that said how it ended.

    Args:
        host: name of this machine.
    """
    name = process.trial.name
    stopped = outcome.state == "interrupted"
    state = cast(TrialState, "stopped" if stopped else outcome.state)
    reason = outcome.reason
    if stopped:
        reason = "stopped by the study" + (f" after step {process.curve[-1].step}" if process.curve else "")
    peak = outcome.facts.get("peak_memory_bytes")
    return TrialResult(
        name=name,
        state=state,
        reason=reason,
        run=_run(name, files),
        summary=outcome.facts,
        curve=curve_of(RunDirectory(files.run(name)).metrics.lines()),
        peak_memory_bytes=int(peak) if process.fresh and state == "finished" and peak else None,
        seconds=time.monotonic() - process.started,
        seconds_of_imports=process.ready - process.started,
        host=host,
    )


def too_often(trial: Trial, kills: int, files: StudyFiles, host: str) -> TrialResult:
    """Return the result of a trial whose process or worker died again and again."""
    log = files.log(trial.name)
    last: list[Any] = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    said = next((line.strip() for line in reversed(last) if line.strip()), "")
    again = (files.results / f"{trial.name}.json").relative_to(files.directory).as_posix()
    reason = f"its process was killed {kills} times (the system does that where memory runs out)"
    reason += f"; remove {again} to try it again"
    return TrialResult(
        name=trial.name,
        state="failed",
        reason=f"{reason}; the end of its output: {said}" if said else reason,
        run=_run(trial.name, files),
        curve=curve_of(RunDirectory(files.run(trial.name)).metrics.lines()),
        host=host,
    )


def _run(name: str, files: StudyFiles) -> str | None:
    """Return the run directory of a trial below the study's, if a run has begun there."""
    run = files.run(name)
    return run.relative_to(files.directory).as_posix() if RunDirectory(run).recipe_file.is_file() else None
