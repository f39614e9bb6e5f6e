"""Prepare every row before training: read and tokenise (or take from the cache), split, number labels, report."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from peftcli.data.chat.renderer import ChatRenderer
from peftcli.data.chat.stop_tokens import stop_tokens
from peftcli.data.encode.recipe_settings import check_data_block, recipe_settings
from peftcli.data.prepared_data import PreparedData
from peftcli.data.read.row_errors import SHOWN_ERRORS
from peftcli.data.read.sources import data_sources, source_keys
from peftcli.data.read.splits import Purpose
from peftcli.data.rows.packing import PackedRows
from peftcli.data.rows.row_selection import Index, limited, missing_rows_note, split_off, weighted, with_known_labels
from peftcli.data.rows.row_set import RowSet, StoredRows
from peftcli.data.store.build_store import Progress
from peftcli.data.store.data_report import Counts, DataReport, unused_note
from peftcli.data.store.empty_answers import EmptyAnswers
from peftcli.data.store.label_form import LabelForm, alike
from peftcli.data.store.labels import Kind, LabelSpec, check_names
from peftcli.data.store.open_store import open_store
from peftcli.data.store.stored_labels import check_learning, counts_of, first_places, label_spec
from peftcli.data.store.token_store import Store
from peftcli.errors import Problem, UserError
from peftcli.recipe.schema import DataSource, DataSpec, TaskName


class RowPreparer:
    """The steps from a `data` block to rows, and what is found on the way.

    Args:
        seed: of the recipe: of the order of a stream, and, unless `data.split_seed` is set, of the split, of `max_rows`
            and of weights.
        labels: labels that are fixed already, those of a run; None takes them from the training rows.
        longest: tokens that the model can place; a longer max_length is cut to it.
        longest_target: the same of a target, where the model's decoder has other positions than its encoder.
        kind: kind of label that the recipe asks for; None reads it off the labels.
        progress: called with the number of rows encoded so far.
        purpose: what the rows of `data.path` are read for.

    Attributes:
        settings: how examples become rows; the kind of label is filled in once it is known.
        notes: what a user should know.
        contents: a hash of the bytes of each source by its title.
        skipped: broken rows that were left out.
    """

    def __init__(
        self,
        spec: DataSpec,
        task: TaskName,
        tokenizer: Any,
        *,
        seed: int,
        labels: LabelSpec | None = None,
        longest: int | None = None,
        longest_target: int | None = None,
        kind: Kind | None = None,
        progress: Progress | None = None,
        purpose: Purpose = "train",
    ) -> None:
        check_data_block(spec, task)
        self.spec, self.task, self.tokenizer, self.seed = spec, task, tokenizer, seed
        self._split_seed = seed if spec.split_seed is None else spec.split_seed
        self.notes: list[str] = []
        self.contents: dict[str, str] = {}
        self.skipped: list[dict[str, Any]] = []
        self._labels, self._progress, self._purpose = labels, progress, purpose
        self._hits: list[bool] = []
        self._unused: Counter[str] = Counter()
        length = spec.max_length
        if longest is not None and longest < length:
            self.notes.append(f"max_length {length} is cut to the model's {longest} positions")
            length = longest
        settings = recipe_settings(spec, task, tokenizer, length)
        if longest_target is not None and longest_target < length:
            self.notes.append(
                f"a target has at most {longest_target} tokens: the model's decoder has no more positions"
            )
            settings = replace(settings, max_target=longest_target)
        if settings.template and (text := ChatRenderer(tokenizer, settings.template, "all").text_after_answers):
            self.notes.append(
                f"the chat template ends an answer with {text!r}, which is no token of the tokenizer: generation writes"
                " it out before it stops; add it with model.new_special_tokens, or set another data.chat_template"
            )
        # of another file; the run's own rows are read as in training, and found in the cache
        several = purpose == "any" and labels is not None and labels.problem == "multi_label"
        names = labels.names if labels is not None and several else ()
        self.settings = replace(settings, kind=labels.problem if labels else kind, names=names)

    def run(self) -> PreparedData:
        """Prepare the training set and every validation set.

        Raises:
            UserError: anything wrong with the data, each with file and row.
        """
        sources = data_sources(self.spec)
        pool = self._store(sources, source_keys(self.spec), self._purpose)
        form = LabelForm(**pool.meta["form"]) if pool.meta["form"] else None
        self.settings = replace(self.settings, kind=pool.meta["kind"], form=form)
        check_learning(pool, self.spec)
        train, held_out = split_off(pool, self.spec, self.settings.kind, self._split_seed)
        self.notes += missing_rows_note(pool, self.spec, held_out)
        labels = self._labels or label_spec(pool, train, self.settings.kind)
        if labels is not None and self._labels is None:
            check_names(labels)
            self.notes += _alike_labels(pool, train, labels)
        train = self._known(pool, train, labels)
        validation: dict[str, RowSet] = {}
        sets = {"train": counts_of(pool)}
        if len(held_out):
            validation[""] = StoredRows(pool, self._to_evaluate(pool, held_out), labels)
        validation |= self.own_validation(labels, sets)
        train = limited(pool, train, self.spec.max_rows, self._split_seed)
        train = weighted(pool, train, [source.weight for source in sources], self._split_seed)
        rows: RowSet = StoredRows(pool, train, labels)
        if self.spec.packing:
            rows = PackedRows(rows, self.settings.max_length)
        report = self._report(pool, train, validation, sets, len(rows) if self.spec.packing else None)
        template = self.settings.template
        return PreparedData(
            rows,
            validation,
            labels,
            report,
            template.name if template else None,
            template.text if template else None,
            stop_tokens(self.tokenizer, pool.meta["end_of_turn"]),
            self.contents,
        )

    def own_validation(self, labels: LabelSpec | None, sets: dict[str, Counts]) -> dict[str, RowSet]:
        """Return the validation sets that have files of their own, and put their counts into `sets`."""
        found: dict[str, RowSet] = {}
        for name, source, key in _validation_sources(self.spec):
            store = self._store([source], [key], "validation")
            check_learning(store, self.spec)
            known = self._known(store, np.arange(len(store), dtype=np.int64), labels)
            found[name] = StoredRows(store, self._to_evaluate(store, known), labels)
            sets[f"validation {name}".strip()] = counts_of(store)
        return found

    def _to_evaluate(self, store: Store, rows: Index) -> Index:
        """Return the rows of a validation set that are evaluated."""
        return limited(store, rows, self.spec.max_eval_rows, self._split_seed)

    def _store(self, sources: list[DataSource], keys: list[str], purpose: Purpose) -> Store:
        store, hit = open_store(
            self.spec,
            sources,
            keys,
            self.settings,
            self.tokenizer,
            on_error=self.spec.on_error,
            purpose=purpose,
            progress=self._progress,
        )
        self._hits.append(hit)
        self.contents |= store.meta["contents"]
        self.notes += store.meta["notes"]
        self.skipped += store.meta["skipped"]
        self._unused.update(store.meta["unused"])
        self.notes += _of_scores(store) + EmptyAnswers(**store.meta["empty_answers"]).note()
        if store.meta["statistics"].get("calls_as_text"):
            self.notes.append("the chat template shows no tool calls: they are written into the text as lines of JSON")
        checked, merged = (store.meta["statistics"].get(f"prefixes_{name}", 0) for name in ("checked", "disagreed"))
        if merged and self.settings.template is None:
            self.notes.append(
                f"in {merged} of {checked} prompts that were checked, the last token merges with the beginning of the "
                "answer: end prompts without a space, and start completions with one"
            )
        return store

    def _known(self, store: Store, rows: Index, labels: LabelSpec | None) -> Index:
        """Return the rows whose labels the model has; the others are an error, or skipped."""
        known, strange = with_known_labels(store, rows, labels)
        if strange and self.spec.on_error == "fail":
            raise UserError(
                Problem(one.message, file=one.source, line=one.row, suggestion=f"labels in training: {one.expected}")
                for one in strange[:SHOWN_ERRORS]
            )
        self.skipped += [one.as_dict() for one in strange]
        if strange:
            first, rest = strange[0], f" and {len(strange) - 1:,} more rows" if len(strange) > 1 else ""
            self.notes.append(f"{first.source}:{first.row}{rest} left out: {first.message}")
        return known

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
        return DataReport(
            counts=sum(sets.values(), Counts()),
            sets=sets,
            format=pool.meta["formats"][0],
            formats=[*dict.fromkeys(pool.meta["formats"])],
            evidence=evidence,
            template=self.settings.template.name if self.settings.template else None,
            cache="hit" if all(self._hits) else "miss",
            cache_directory=str(pool.directory),
            skipped=self.skipped,
            notes=[*self.notes, *unused_note(self._unused)],
            train_rows=len(train),
            validation_rows={name: len(rows) for name, rows in validation.items()},
            tokens=int(lengths.sum()),
            supervised_tokens=int(pool.learnt[train].sum(dtype=np.int64)),
            longest=int(lengths.max()) if len(lengths) else 0,
            packed_rows=packed_rows,
            checks=pool.meta["statistics"],
            unused=dict(self._unused),
            split=self.settings.overflow == "split",
        )


def _alike_labels(store: Store, rows: Index, labels: LabelSpec) -> list[str]:
    """Say which labels of the training rows may be meant as one, each with its first row."""
    groups = alike(labels.names)
    places = first_places(store, rows) if groups else {}
    shown = [", ".join(f"{name!r} ({places[name]})" for name in group) for group in groups]
    return [f"the labels {group} differ only in case, spaces or spelling; each is a class" for group in shown]


def _of_scores(store: Store) -> list[str]:
    """Say how many pairs of preferences the scores beside them do not put in their order."""
    tied, behind = (store.meta["statistics"].get(f"pairs_{name}", 0) for name in ("tied", "behind"))
    notes = [f"{tied} of the pairs are ties: both answers have the same score"] if tied else []
    if behind:
        notes.append(f"in {behind} of the pairs the rejected answer has the higher score: are the columns swapped?")
    return notes


def _validation_sources(spec: DataSpec) -> list[tuple[str, DataSource, str]]:
    """Return (name, source, recipe's key) of each validation set with files of its own."""
    given = spec.validation
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
