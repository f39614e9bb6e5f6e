"""What decides the content of a store: the sources with what the recipe says of their rows, and the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.read.records import Record
from peftcli.data.read.source_files import SourceFiles
from peftcli.data.read.sources import resolve_source
from peftcli.data.read.splits import Purpose
from peftcli.data.recognition.format_table import format_code
from peftcli.data.recognition.recognise import recognise
from peftcli.data.recognition.row_format import RecognisedFormat
from peftcli.recipe.schema import DataSource, DataSpec

JUDGED = 500  # rows by which the format and the kind of label are judged


@dataclass(frozen=True)
class SourceJob:
    """One source with what the recipe says of its rows."""

    files: SourceFiles
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    template: str | None = None

    def recognise(self, records: Sequence[Record], settings: EncodeSettings) -> RecognisedFormat:
        """Return how the rows become examples, judged by the first ones.

        Raises:
            UserError: no format fits, or not the one that the recipe names.
        """
        return recognise(
            records,
            settings.task,
            wanted=self.format,
            columns=self.columns,
            template=self.template,
            source=self.files.title,
            predicting=settings.predicting,
            of_source=self.files.format,
        )


@dataclass(frozen=True)
class StoreJob:
    """Everything that decides the content of one store, besides the tokenizer.

    Args:
        sources: in order; their rows lie one after another.
        settings: how examples become rows; its kind is None when it is to be read off the labels.
        on_error: what a broken row does.
        group_by: column whose value is remembered for the split.
    """

    sources: tuple[SourceJob, ...]
    settings: EncodeSettings
    on_error: Literal["fail", "skip"] = "fail"
    group_by: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what belongs into the cache key."""
        sources = [
            [
                *(job.files.kind, job.files.fingerprint(), job.format, sorted(job.columns.items()), job.template),
                *format_code(job.format),
            ]
            for job in self.sources
        ]
        return {
            "sources": sources,
            "settings": self.settings.as_dict(),
            "on_error": self.on_error,
            "group_by": self.group_by,
        }

    def files_state(self) -> list[tuple[int, ...]]:
        """Return what the file system says of all files; see `SourceFiles.state`."""
        return [one for source in self.sources for one in source.files.state()]

    def contents(self, facts: dict[str, Any]) -> dict[str, str]:
        """Return a hash of every byte of each source, by its title; `facts` has them already."""
        return {job.files.title: source[1] for job, source in zip(self.sources, facts["sources"], strict=True)}

    def input_names(self) -> list[str]:
        """Return the names under which rows can appear, in a fixed order."""
        return [name for source in self.sources for name in (source.files.title, *map(str, source.files.files))]


def source_jobs(spec: DataSpec, sources: list[DataSource], keys: list[str], purpose: Purpose) -> tuple[SourceJob, ...]:
    """Return the sources found, each with its format and columns, by default those of `data`.

    Args:
        keys: the recipe's key of each source, for messages.
        purpose: what the rows are read for, which decides about splits that the recipe does not name.

    Raises:
        UserError: a source cannot be found, or not be read.
    """
    return tuple(
        SourceJob(
            resolve_source(source, f"{key}.path", purpose),
            source.format or spec.format,
            dict(spec.columns if source.columns is None else source.columns),
            spec.template,
        )
        for source, key in zip(sources, keys, strict=True)
    )
