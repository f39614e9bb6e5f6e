"""Write the report of a study: report.html, and beside it report.md and the plots as SVG files."""

from __future__ import annotations

from pathlib import Path

from peftcli.atomic import write_text
from peftcli.errors import UserError
from peftcli.studies.compare.comparison import Comparison
from peftcli.studies.report.comparison_markdown import comparison_markdown
from peftcli.studies.report.comparison_page import comparison_report
from peftcli.studies.report.run_pages.run_files import read_run
from peftcli.studies.report.run_pages.run_page import run_report
from peftcli.studies.report.study_record import read_study, record_file
from peftcli.studies.report.sweep_markdown import sweep_markdown
from peftcli.studies.report.sweep_page import sweep_report
from peftcli.studies.sweep.sweep_record import Sweep

REPORT = "report.html"
STUDY = "study.json"
_INSTEAD = "choose another --output"


def report_of(directory: Path, output: Path | None = None) -> list[Path]:
    """Write the page of what a directory holds, from its files alone.

    Args:
        directory: of a run or a study.
        output: where the page goes; `report.html` in the directory by default.

    Returns:
        The files, the page first.

    Raises:
        UserError: it is neither, or the study has no result yet.
        CannotWrite: the system refuses.
    """
    file = output or directory / REPORT
    record = record_file(directory)
    if record is not None:
        return write_report(read_study(record), file, instead=_INSTEAD)
    if (directory / STUDY).is_file():
        raise UserError(
            f"{directory} holds a study without a result",
            suggestion="run the study's command again: it continues the study",
        )
    write_text(file, run_report(read_run(directory)), instead=_INSTEAD)
    return [file]


def write_report(study: Comparison | Sweep, file: Path, *, instead: str = _INSTEAD) -> list[Path]:
    """Write the page of a study, and beside it the same as Markdown and each of its plots in `plots/NAME.svg`.

    Args:
        study: the record.
        file: where the page goes, usually `report.html` in the study's directory.
        instead: what the user can do where it cannot be written.

    Returns:
        The files, the page first.
    """
    if isinstance(study, Comparison):
        (page, figures), markdown = comparison_report(study), comparison_markdown(study)
    else:
        (page, figures), markdown = sweep_report(study), sweep_markdown(study)
    texts = {file: page, file.with_suffix(".md"): markdown}
    texts |= {file.parent / "plots" / f"{one.name}.svg": one.file() for one in figures}
    for path, text in texts.items():
        write_text(path, text, instead=instead)
    return list(texts)
