"""The files of a study's directory, and `study.json`: what was asked."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftcli.atomic import write_text
from peftcli.errors import Problem, UserError
from peftcli.record.recipe_changes import changed_keys
from peftcli.shown_text import some_of
from peftcli.studies.engine.create_once import create_once
from peftcli.studies.engine.trial import TrialResult
from peftcli.typed_record import read_object, read_record

VERSION = 1
"""Of the format of a study's directory."""

ANOTHER = "choose another directory for the study (-o), or remove this one"


class StudyFiles:
    """Where the parts of a study lie.

    Args:
        directory: of the study; it need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = directory / "study.json"
        self.recipes = directory / "recipes"
        self.trials = directory / "trials"
        self.leases = directory / "leases"
        self.results = directory / "results"
        self.scores = directory / "scores"
        self.journal = directory / "journal.log"

    def run(self, name: str) -> Path:
        """Return the run directory of a trial."""
        return self.trials / name

    def log(self, name: str) -> Path:
        """Return the file with the whole text of a trial's error."""
        return self.results / f"{name}.log"

    def begin(self, asked: Mapping[str, Any], storage: str | None) -> str:
        """Write `study.json`, or compare with the one that is there; return the study's id.

        Args:
            asked: what was asked, as plain data.
            storage: URL of the database that holds the states of its trials, without a password; None is the journal.

        Raises:
            UserError: another version's study, one of another question or with another storage, or a directory that
                holds something else.
        """
        question = json.loads(json.dumps(dict(asked)))  # as a file gives it back
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory} is a file", suggestion="choose another directory for the study (-o)")
        before = sorted(entry.name for entry in self.directory.iterdir()) if self.directory.is_dir() else []
        if not self.record.exists():  # looked for after the others: it is a study's first file
            if foreign := [name for name in before if not name.startswith(".") and name != self.recipes.name]:
                text = f"{self.directory} holds files that are no study: {', '.join(foreign[:3])}"
                raise UserError(text, suggestion="choose another directory for the study (-o), or empty this one")
            record = {"version": VERSION, "id": uuid.uuid4().hex, "storage": storage, "asked": question}
            self.directory.mkdir(parents=True, exist_ok=True)
            create_once(self.record, json.dumps(record, indent=2) + "\n")  # of two that begin at once, one does
        found = read_object(self.record, suggestion=ANOTHER)
        self._check(found, question, storage)
        for place in (self.recipes, self.trials, self.leases, self.results, self.scores):
            place.mkdir(exist_ok=True)
        return str(found["id"])

    def _check(self, found: Mapping[str, Any], question: Mapping[str, Any], storage: str | None) -> None:
        if found.get("version") != VERSION or not isinstance(found.get("asked"), dict) or "id" not in found:
            text = f"a study of another version ({found.get('version')}); this peftcli reads version {VERSION}"
            raise UserError(Problem(text, file=str(self.record), suggestion=ANOTHER))
        if different := changed_keys({"asked": found["asked"]}, {"asked": question}):
            keys = [key.removeprefix("asked.") for key in different]
            text = f"a study with other settings; it differs in {some_of(keys, 5)}"
            raise UserError(Problem(text, file=str(self.record), suggestion=ANOTHER))
        if (kept := found.get("storage")) != storage:
            remedy = "leave out --storage" if kept is None else f"give --storage {kept} (with its password)"
            text = f"this study keeps its trials in {'its journal' if kept is None else kept}"
            raise UserError(Problem(text, file=str(self.record), suggestion=f"{remedy}; or {ANOTHER}"))

    def result(self, name: str) -> TrialResult | None:
        """Return how a trial ended; None if it did not.

        Raises:
            UserError: the file is damaged.
        """
        file = self.results / f"{name}.json"
        if not file.exists():
            return None
        remedy = "remove the file: the trial is trained again, or continued where its run stopped"
        return read_record(TrialResult, file, suggestion=remedy)

    def write_result(self, result: TrialResult) -> None:
        """Write how a trial ended, whole or not at all."""
        write_text(self.results / f"{result.name}.json", json.dumps(asdict(result), indent=2) + "\n")
