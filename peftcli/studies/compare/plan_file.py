"""The plan on disk: the first start of the command makes it, every later one and every other machine follows it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from peftcli.errors import Problem, UserError
from peftcli.studies.compare.length_plan import StudyPlan
from peftcli.studies.compare.run_cost import RunLength


def kept_plan(file: Path, make: Callable[[], StudyPlan]) -> StudyPlan:
    """Return the plan in a file, or make one and write it, unless somebody else does so at the same moment.

    Raises:
        UserError: what is there is no plan, or none can be made.
    """
    if not file.exists():
        text = json.dumps(asdict(make()), indent=2) + "\n"
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        try:
            os.link(partial, file)  # fails where the file exists: the first one counts
        except FileExistsError:
            pass
        finally:
            partial.unlink(missing_ok=True)
    return _read(file)


def _read(file: Path) -> StudyPlan:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        lengths = {key: RunLength(**data[key]) for key in ("search", "score")}
        return StudyPlan(**{**data, **lengths, "methods": tuple(data["methods"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "remove it: the study makes another plan, and runs of another length again"
        raise UserError(Problem("this plan of a comparison is damaged", str(file), suggestion=remedy)) from error
