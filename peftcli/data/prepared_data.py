"""What the preparation of a recipe's data gives: rows to train on, rows to evaluate on, and a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftcli.data.rows.row_set import RowSet
from peftcli.data.rows.streaming import StreamedRows
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

    @property
    def skipped_of_stream(self) -> int:
        """Broken rows that were left out of a stream so far; those of other rows are all in the report."""
        return self.train.skipped if isinstance(self.train, StreamedRows) else 0

    def skipped_rows(self) -> list[dict[str, Any]]:
        """Return the broken rows that were left out so far, as `report.skipped` has them."""
        streamed = [row.as_dict() for row in self.train.broken] if isinstance(self.train, StreamedRows) else []
        return [*self.report.skipped, *streamed]

    def repeated_notes(self) -> list[str]:
        """Return notes on the sources of a stream that were used again, as far as the report does not say it."""
        found = self.train.repeated(self.train.read) if isinstance(self.train, StreamedRows) else []
        return [note for note in found if note not in self.report.notes]

    def skipped_note(self) -> list[str]:
        """Return a note on the rows that were left out of a stream, if there are any."""
        if not isinstance(self.train, StreamedRows) or not self.train.skipped:
            return []
        count, first = self.train.skipped, self.train.broken[0]
        rows = "1 broken row of the stream was" if count == 1 else f"{count:,} broken rows of the stream were"
        return [f"{rows} left out, first {first.source}:{first.row}: {first.message}; skipped_rows.jsonl lists them"]
