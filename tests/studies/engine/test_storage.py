"""What a study refuses before anything is loaded: storages, versions, questions, directories."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from peftcli.errors import UserError
from peftcli.studies.engine.storage import without_password
from peftcli.studies.engine.study import Study
from peftcli.studies.engine.study_files import StudyFiles
from tests.studies.engine.small_study import ASKED


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://me:secret@127.0.0.1:1/x", "cannot be used: connection failed"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("mysql://me:secret@host/x", "its database driver is not installed"),
        ("somewhere", "is not the URL of a database"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, url: str, text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        Study.open(tmp_path / "study", ASKED, storage=url)
    assert "secret" not in str(caught.value) and caught.value.problems[0].suggestion
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:1/x", "postgresql://me@host:1/x"),
        ("postgresql://me:sec?ret@host/x", "postgresql://me@host/x"),
        ("postgresql:///x?host=/tmp&user=me&password=se@cret", "postgresql:///x?host=/tmp&user=me"),
        ("postgresql://me:secret@host/x?sslpassword=secret&sslmode=require", "postgresql://me@host/x?sslmode=require"),
        ("postgresql://me@/x?host=/tmp", "postgresql://me@/x?host=/tmp"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_a_url_is_shown_without_its_password_wherever_that_stands(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_study_of_another_version_or_question_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "study"
    first = Study.open(directory, ASKED)
    assert Study.open(directory, ASKED).optuna.study_name == first.optuna.study_name
    with pytest.raises(UserError, match="other settings; it differs in seeds"):
        Study.open(directory, {**ASKED, "seeds": [1]})
    with pytest.raises(UserError, match="keeps its trials in its journal"):
        Study.open(directory, ASKED, storage=f"sqlite:///{tmp_path / 'x.db'}")
    record = json.loads((directory / "study.json").read_text())
    (directory / "study.json").write_text(json.dumps({**record, "version": 9}))
    with pytest.raises(UserError, match=r"another version \(9\)"):
        Study.open(directory, ASKED)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no study: notes\.txt"):
        Study.open(other, ASKED)


def test_a_line_of_the_journal_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    Study.open(tmp_path / "study", ASKED)
    with (tmp_path / "study" / "journal.log").open("a") as file:
        file.write('{"op_code": 4, "worker')
    study = Study.open(tmp_path / "study", ASKED)
    study.optuna.ask()
    assert len(Study.open(tmp_path / "study", ASKED).optuna.trials) == 1


def test_workers_that_begin_a_study_at_the_same_moment_have_one_study(tmp_path: Path) -> None:
    together = Barrier(8)

    def begin(directory: Path) -> str:
        together.wait()
        return StudyFiles(directory).begin(ASKED, None)

    with ThreadPoolExecutor(8) as workers:
        for number in range(30):
            assert len(set(workers.map(begin, [tmp_path / str(number)] * 8))) == 1
