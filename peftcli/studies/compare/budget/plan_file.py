"""The plan on disk: the first start of the command makes it, every later one and every other machine follows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from peftcli.errors import Problem, UserError
from peftcli.studies.compare.budget.length_plan import StudyPlan
from peftcli.studies.compare.budget.run_cost import RunLength
from peftcli.studies.engine.create_once import create_once


def kept_plan(file: Path, make: Callable[[], StudyPlan]) -> StudyPlan:
    """Return the plan in a file, or make one and write it; of two that do so at the same moment, the first counts.

    Raises:
        UserError: what is there is no plan, or none can be made.
    """
    if not file.exists():
        create_once(file, json.dumps(asdict(make()), indent=2) + "\n")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        lengths = {key: RunLength(**data[key]) for key in ("search", "score")}
        return StudyPlan(**{**data, **lengths, "methods": tuple(data["methods"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "remove it: the study makes another plan, and trains runs of another length"
        raise UserError(Problem("this plan of a comparison is damaged", str(file), suggestion=remedy)) from error
