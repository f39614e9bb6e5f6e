"""What the preparation of a recipe's data gives: rows to train on, rows to evaluate on, and a report."""

from __future__ import annotations

from dataclasses import dataclass, field

from peftcli.data.rows.row_set import RowSet
from peftcli.data.store.data_report import DataReport
from peftcli.data.store.labels import LabelSpec


@dataclass(frozen=True)
class PreparedData:
    """Everything that a run needs of its data.

    Args:
        train: rows to train on.
        validation: rows to evaluate on, by name; the unnamed set is "".
        labels: the head's labels, None for language models.
        report: what became of the rows.
        template: name of the chat template, None for plain text.
        chat_template: its Jinja source, for whoever generates with the run.
        stop_token_ids: tokens at which generation should stop.
        contents: a hash of the bytes of each source by its title, a stream's by samples; sources that are not on disk
            are left out.
    """

    train: RowSet
    validation: dict[str, RowSet]
    labels: LabelSpec | None
    report: DataReport
    template: str | None = None
    chat_template: str | None = None
    stop_token_ids: tuple[int, ...] = ()
    contents: dict[str, str] = field(default_factory=dict)
