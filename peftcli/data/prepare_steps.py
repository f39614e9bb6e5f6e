"""The steps of preparing data: read and tokenise (or take from the cache), split, number labels, weigh, report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peftcli.data.chat.named_templates import choose_template
from peftcli.data.chat.stop_tokens import stop_tokens
from peftcli.data.encode.causal import added_in_front
from peftcli.data.encode.encode_settings import EncodeSettings
from peftcli.data.read.sources import data_sources, resolve_source
from peftcli.data.rows.packing import PackedRows
from peftcli.data.rows.row_set import RowSet, StoredRows
from peftcli.data.rows.split import split_rows
from peftcli.data.store.build_store import Progress, SourceJob, StoreJob, build_store, input_names
from peftcli.data.store.cache import cache_directory, cached_store, key_of, tokenizer_fingerprint
from peftcli.data.store.data_report import Counts, DataReport
from peftcli.data.store.labels import Kind, LabelSpec, check_names
from peftcli.data.store.stored_labels import (
    check_learning,
    counts_of,
    label_spec,
    names_of,
    rows_of_raw,
    rows_with_other_names,
)
from peftcli.data.store.token_store import Store
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSource, DataSpec, TaskName
from peftcli.tasks.task_table import TASKS, task_info

Index = npt.NDArray[np.int64]


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
    """

    train: RowSet
    validation: dict[str, RowSet]
    labels: LabelSpec | None
    report: DataReport
    template: str | None = None
    chat_template: str | None = None
    stop_token_ids: tuple[int, ...] = field(default=())


class Preparation:
    """The steps from a `data` block to rows, with what they share."""

    def __init__(
        self,
        spec: DataSpec,
        task: TaskName,
        tokenizer: Any,
        seed: int,
        labels: LabelSpec | None,
        longest: int | None,
        kind: Kind | None,
        progress: Progress | None,
    ) -> None:
        self.spec, self.task, self.tokenizer, self.seed = spec, task, tokenizer, seed
        self.given, self.progress = labels, progress
        self.notes: list[str] = []
        self.skipped: list[dict[str, Any]] = []
        length = spec.max_length
        if longest is not None and longest < length:
            self.notes.append(f"max_length {length} is cut to the model's {longest} positions")
            length = longest
        self.settings = replace(make_settings(spec, task, tokenizer, length), kind=labels.problem if labels else kind)
        self.hits: list[bool] = []

    def run(self) -> PreparedData:
        """Prepare the training set and every validation set."""
        check_spec(self.spec, self.task)
        sources = data_sources(self.spec)
        pool = self._store(sources, source_keys(self.spec, sources))
        self.settings = replace(self.settings, kind=pool.meta["kind"])
        check_learning(pool, self.spec)
        train, held_out = self._split(pool)
        spec = self.given or label_spec(pool, train, self.settings.kind)
        if spec is not None and self.given is None:
            check_names(spec)
        train = self._known(pool, train, spec)
        validation: dict[str, RowSet] = {}
        sets = {"train": counts_of(pool)}
        if len(held_out):
            validation[""] = StoredRows(pool, held_out, spec)
        validation |= self.own_validation(spec, sets)
        train = self._weighted(pool, self._limited(pool, train), sources)
        rows: RowSet = StoredRows(pool, train, spec)
        if self.spec.packing:
            rows = PackedRows(rows, self.settings.max_length)
        report = self._report(pool, train, validation, sets, len(rows) if self.spec.packing else None)
        template = self.settings.template
        return PreparedData(
            rows,
            validation,
            spec,
            report,
            template.name if template else None,
            template.text if template else None,
            stop_tokens(self.tokenizer, pool.meta["end_of_turn"]),
        )

    def own_validation(self, spec: LabelSpec | None, sets: dict[str, Counts]) -> dict[str, RowSet]:
        """Return the validation sets that have files of their own, and put their counts into `sets`."""
        found: dict[str, RowSet] = {}
        for name, source, key in self._validation_sources():
            store = self._store([source], [key])
            check_learning(store, self.spec)
            known = self._known(store, np.arange(len(store), dtype=np.int64), spec)
            found[name] = StoredRows(store, known, spec)
            sets[f"validation {name}".strip()] = counts_of(store)
        return found

    def _store(self, sources: list[DataSource], keys: list[str]) -> Store:
        store, hit = stored(
            self.spec, sources, keys, self.settings, self.tokenizer, self.progress, on_error=self.spec.on_error
        )
        self.hits.append(hit)
        self.notes += store.meta["notes"]
        self.skipped += store.meta["skipped"]
        checked, merged = (store.meta["statistics"].get(f"prefixes_{name}", 0) for name in ("checked", "disagreed"))
        if merged and self.settings.template is None:
            self.notes.append(
                f"in {merged} of {checked} prompts that were tokenised alone the last token merges with the answer: "
                "end prompts without a space, and start completions with it"
            )
        return store

    def _split(self, pool: Store) -> tuple[Index, Index]:
        """Return the rows to train on and those split off; the parts of one raw row stay together."""
        raw = np.unique(pool.origin)
        if self.spec.validation is not None or self.spec.val_set_size == 0:
            return np.arange(len(pool), dtype=np.int64), np.empty(0, dtype=np.int64)
        single = self.settings.kind == "single_label"
        stratified = single and self.spec.group_by is None if self.spec.stratify is None else self.spec.stratify
        classes = pool.raw("class")[raw] if stratified else None
        groups = pool.raw("group")[raw] if self.spec.group_by else None
        mine, theirs = split_rows(raw, self.spec.val_set_size, self.seed, classes=classes, groups=groups)
        train, held_out = rows_of_raw(pool, mine), rows_of_raw(pool, theirs)
        if self.settings.kind in (None, "regression"):
            return train, held_out
        # a row whose label would then be unknown stays with the training rows
        unknown = rows_with_other_names(pool, held_out, names_of(pool, train))
        if len(unknown):
            moved = np.isin(pool.origin[held_out], pool.origin[unknown])
            train, held_out = np.sort(np.concatenate((train, held_out[moved]))), held_out[~moved]
        return train, held_out

    def _validation_sources(self) -> list[tuple[str, DataSource, str]]:
        """Return (name, source, key) of each validation set of its own."""
        given = self.spec.validation
        if given is None:
            return []
        if isinstance(given, DataSource):
            return [(given.name or "", given, "data.validation")]
        out: list[tuple[str, DataSource, str]] = []
        for place, source in enumerate(given):
            name = source.name or ("" if len(given) == 1 else Path(source.path).name.split(".")[0])
            if name in [other for other, _, _ in out]:
                text = f"two validation sets are called {name!r}"
                raise UserError(Problem(text, key=f"data.validation.{place}", suggestion="give each a name"))
            out.append((name, source, f"data.validation.{place}"))
        return out

    def _known(self, store: Store, rows: Index, spec: LabelSpec | None) -> Index:
        """Return the rows whose labels the model has; the others are an error, or skipped."""
        if spec is None or spec.problem == "regression":
            return rows
        unknown = rows_with_other_names(store, rows, set(spec.names))
        if not len(unknown):
            return rows
        known = ", ".join(spec.names[:10]) + (", ..." if len(spec.names) > 10 else "")
        problems = []
        for row in unknown.tolist():
            source, number = store.place(row)
            names = sorted(names_of(store, np.array([row])) - set(spec.names))
            message = f"the label {', '.join(map(repr, names))} does not occur in training"
            problems.append(Problem(message, file=source, line=number, suggestion=f"labels in training: {known}"))
        if self.spec.on_error == "fail":
            raise UserError(problems[:20])
        self.skipped += [
            {"source": one.file, "row": one.line, "message": one.message, "excerpt": "", "expected": known}
            for one in problems
        ]
        return rows[~np.isin(rows, unknown)]

    def _limited(self, pool: Store, train: Index) -> Index:
        """Return at most `max_rows` raw rows' worth of the training rows, drawn by the seed."""
        raw = np.unique(pool.origin[train])
        if self.spec.max_rows is None or len(raw) <= self.spec.max_rows:
            return train
        random = np.random.Generator(np.random.PCG64([self.seed, 0x11A17]))
        chosen = random.permutation(raw)[: self.spec.max_rows]
        return train[np.isin(pool.origin[train], chosen)]

    def _weighted(self, pool: Store, train: Index, sources: list[DataSource]) -> Index:
        """Return the rows with each source as often as its weight says: 0.5 half of it, 2 every row twice."""
        if all(source.weight == 1 for source in sources):
            return train
        random = np.random.Generator(np.random.PCG64([self.seed, 0x3E16]))
        number_of_set = pool.raw("set")[pool.origin[train]]
        parts = []
        for place, source in enumerate(sources):
            mine = train[number_of_set == place]
            rest = round((source.weight - int(source.weight)) * len(mine))
            parts += [mine] * int(source.weight) + [np.sort(random.permutation(mine)[:rest])]
        return np.concatenate(parts)

    def _report(
        self,
        pool: Store,
        train: Index,
        validation: dict[str, RowSet],
        sets: dict[str, Counts],
        packed_rows: int | None,
    ) -> DataReport:
        lengths = pool.lengths[train]
        evidence = list(pool.meta["evidence"])
        for rows in validation.values():
            if isinstance(rows, StoredRows) and rows.store is not pool:
                evidence += [f"validation {line}" for line in rows.store.meta["evidence"]]
        total = sum(sets.values(), Counts())
        return DataReport(
            counts=total,
            sets=sets,
            format=pool.meta["formats"][0],
            evidence=evidence,
            template=self.settings.template.name if self.settings.template else None,
            cache="hit" if all(self.hits) else "miss",
            cache_directory=str(pool.directory),
            skipped=self.skipped,
            notes=self.notes,
            train_rows=len(train),
            validation_rows={name: len(rows) for name, rows in validation.items()},
            tokens=int(lengths.sum()),
            supervised_tokens=int(pool.learnt[train].sum(dtype=np.int64)),
            longest=int(lengths.max()) if len(lengths) else 0,
            packed_rows=packed_rows,
            checks=pool.meta["statistics"],
        )


def make_settings(spec: DataSpec, task: TaskName, tokenizer: Any, length: int) -> EncodeSettings:
    """Return how a recipe's examples become rows; the kind of label is still open."""
    kind = task_info(task).rows
    if kind == "tagged" and not tokenizer.is_fast:
        raise UserError(
            Problem(
                f"{task} needs a fast tokenizer, which says where words begin; "
                f"{type(tokenizer).__name__} is Python code",
                key="model.name_or_path",
                suggestion="choose a model with a tokenizer.json",
            )
        )
    template = choose_template(spec.chat_template, tokenizer) if kind == "text" else None
    adds = bool(template and template.name != "tokenizer" and added_in_front(tokenizer))
    return EncodeSettings(task, length, spec.overflow, spec.train_on, template=template, add_head=adds)


def source_jobs(spec: DataSpec, sources: list[DataSource], keys: list[str]) -> tuple[SourceJob, ...]:
    """Return the sources found, each with its format and columns, by default those of `data`."""
    return tuple(
        SourceJob(
            resolve_source(source, f"{key}.path"),
            source.format or spec.format,
            dict(spec.columns if source.columns is None else source.columns),
            spec.template,
        )
        for source, key in zip(sources, keys, strict=True)
    )


def source_keys(spec: DataSpec, sources: list[DataSource]) -> list[str]:
    """Return the recipe's key of each training source."""
    return ["data"] if spec.path is not None else [f"data.datasets.{place}" for place in range(len(sources))]


def stored(
    spec: DataSpec,
    sources: list[DataSource],
    keys: list[str],
    settings: EncodeSettings,
    tokenizer: Any,
    progress: Progress | None,
    *,
    on_error: Any,
) -> tuple[Store, bool]:
    """Return the store of some sources, from the cache or made now, and whether it was there."""
    job = StoreJob(
        source_jobs(spec, sources, keys), settings, on_error, spec.group_by if spec.validation is None else None
    )
    key = key_of({**job.facts(), "tokenizer": tokenizer_fingerprint(tokenizer)})

    def build(directory: Path) -> None:
        build_store(directory, job, tokenizer, processes=spec.num_proc, progress=progress)

    store, hit = cached_store(cache_directory(spec.cache_dir), key, build)
    store.rename(input_names(job))
    return store, hit


def check_spec(spec: DataSpec, task: TaskName) -> None:
    problems, info = [], task_info(task)
    if spec.packing and not info.packs:
        those = ", ".join(name for name, other in TASKS.items() if other.info.packs)
        problems.append(Problem(f"packing is for {those}, not {task}", key="data.packing", suggestion="set it false"))
    if spec.group_by and spec.stratify:
        text = "a split cannot be grouped and stratified at once"
        problems.append(Problem(text, key="data.stratify", suggestion="leave one of group_by and stratify out"))
    if spec.overflow == "split" and info.why_not_split:
        text = f"overflow: split would {info.why_not_split}"
        problems.append(Problem(text, key="data.overflow", suggestion="truncate, drop or error"))
    if problems:
        raise UserError(problems)
