"""`peft report`: a page of a run or a study from its files alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.recipe.run_paths import IMPORTED
from peftcli.record.listing.failure import write_failure
from peftcli.record.own_entries import clear
from tests.command_line import Cli
from tests.studies.report.pages import checked
from tests.studies.report.records import example_comparison
from tests.studies.report.run_directories import write_run


def test_a_run_becomes_a_page_in_its_directory(cli: Cli, tmp_path: Path) -> None:
    run = write_run(tmp_path / "lora")
    result = cli("report", run)
    assert (result.code, result.out) == (0, "")
    assert f"wrote {run / 'report.html'}" in result.err
    text = checked((run / "report.html").read_text(encoding="utf-8")).text
    for part in ("before: 25.0%", "148,994", "Loss while training", "a good answer", "bad row", "2.13.0", "lora_alpha"):
        assert part in text, part


def test_an_unfinished_run_becomes_a_page_of_what_is_known(cli: Cli, tmp_path: Path) -> None:
    run = write_run(tmp_path / "lora")
    (run / "summary.json").unlink()
    assert cli("report", run, "-o", tmp_path / "page.html").code == 0
    assert "interrupted" in checked((tmp_path / "page.html").read_text(encoding="utf-8")).text
    write_failure(run, UserError("the disk is full"))
    assert cli("report", run, "-o", tmp_path / "page.html").code == 0
    text = checked((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "failed: the disk is full" in text and "continue it with --resume" in text  # as `peft runs` says
    assert not (run / "report.html").exists()
    for name in ("metrics.jsonl", "samples.jsonl", "skipped_rows.jsonl"):
        (run / name).unlink()
    assert cli("report", run).code == 0
    checked((run / "report.html").read_text(encoding="utf-8"))


def test_an_imported_adapter_has_no_training_to_report(cli: Cli, tmp_path: Path) -> None:
    run = write_run(tmp_path / "lora")
    (run / "summary.json").write_text(json.dumps({"status": IMPORTED}), encoding="utf-8")
    done = cli("report", run)
    assert done.code == 2 and not (run / "report.html").exists()
    assert done.err.count("error:") == 1 and f"peft inspect-adapter {run}" in done.err


def test_a_study_becomes_a_page_with_its_plots(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps(example_comparison().as_dict()), encoding="utf-8")
    assert cli("report", tmp_path).code == 0
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 7
    checked((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("made", "said"),
    [("nothing", "no recipe.yaml"), ("study", "a study without a result"), ("gone", "there is no run directory")],
)
def test_anything_else_is_refused_with_the_remedy(cli: Cli, tmp_path: Path, made: str, said: str) -> None:
    if made == "study":
        (tmp_path / "study.json").write_text("{}", encoding="utf-8")
    result = cli("report", tmp_path / "gone" if made == "gone" else tmp_path)
    assert result.code == 2 and said in result.err


def test_a_run_that_is_replaced_loses_its_page(cli: Cli, tmp_path: Path) -> None:
    run = write_run(tmp_path / "lora")
    cli("report", run)
    clear(run)
    assert not (run / "report.html").exists()


def test_it_loads_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "lora")
    code = (
        "import sys; from pathlib import Path; from peftcli.studies.report.written_report import report_of; "
        f"report_of(Path({str(run)!r})); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
    shutil.rmtree(run)
