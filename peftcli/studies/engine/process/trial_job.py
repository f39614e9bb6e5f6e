"""From a trial to what its process is to do."""

from __future__ import annotations

import json
import os

from peftcli.studies.engine.process.machine_share import MachineShare
from peftcli.studies.engine.process.trial_outcome import TrialJob
from peftcli.studies.engine.study_files import StudyFiles
from peftcli.studies.engine.trial import Trial

_KEPT_HERE = "training.push_to_hub=null"
"""A study's trials would overwrite each other in the repository that the recipe names."""


def job_of(trial: Trial, files: StudyFiles, share: MachineShare, *, asks: bool) -> TrialJob:
    """Return the job of a trial's process.

    Args:
        share: what it gets of the machine.
        asks: whether somebody may stop it after an evaluation.
    """
    run = files.run(trial.name)
    return TrialJob(
        recipe=str(files.directory / trial.recipe),
        changes=(*trial.overrides, _KEPT_HERE, f"output_dir={json.dumps(str(run))}"),
        run=str(run),
        scores=str(files.scores / f"{trial.name}.json") if trial.score_rows else None,
        log=str(files.log(trial.name)),
        environment={**os.environ, **share.environment},
        threads=share.threads,
        asks=asks,
    )
