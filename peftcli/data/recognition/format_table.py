"""The formats of rows, in the order in which they are tried on a file's columns. A new format gets one line here.

Those of plug-ins are taken only where `data.format` names them: an installed package changes no recognition.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, get_args

from peftcli.data.formats import (
    alpaca,
    classification,
    folders,
    input_target,
    messages,
    preference,
    pretokenized,
    prompt_completion,
    question_answer,
    sharegpt,
    text,
    tokens_tags,
    unpaired,
)
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import Example
from peftcli.data.recognition.row_format import MakeExamples, RecognisedFormat, RowFormat
from peftcli.recipe.entry_points import Plugin, WithPlugins, plugin
from peftcli.tasks.task_info import RowKind

FORMATS: tuple[RowFormat, ...] = (
    pretokenized.FORMAT,
    tokens_tags.FORMAT,
    classification.FORMAT,
    folders.FORMAT,
    preference.FORMAT,
    unpaired.FORMAT,
    alpaca.FORMAT,
    input_target.FORMAT,
    messages.FORMAT,
    sharegpt.FORMAT,
    prompt_completion.FORMAT,
    question_answer.FORMAT,
    text.FORMAT,
)
"""A row may have the columns of several formats: the first one that fits is taken."""

WITH_TEMPLATE = (prompt_completion.FORMAT, question_answer.FORMAT, alpaca.FORMAT, text.FORMAT)
"""The formats of `text` rows among which the answer's column chooses when `data.template` makes the prompt.

The last one has no answer: it is what is left.
"""

ASKED_ALONE = (prompt_completion.FORMAT, question_answer.FORMAT, text.FORMAT, preference.FORMAT, unpaired.FORMAT)
"""Formats whose rows are no dialogues where their prompts are texts and not messages.

Without a chat template, each turn of a chat is then a prompt of its own.
"""

OWN_FORMATS = {known.name: known for known in FORMATS}


def format_of_plugin(name: str) -> RowFormat | None:
    """Return the row format of that name that an installed package offers, None if there is none.

    Raises:
        UserError: the package cannot be imported, holds something else, or takes one of our names.
    """
    found = plugin("format", name, (*OWN_FORMATS, "auto"))
    if found is None:
        return None
    held = found.held("FORMAT")
    if not isinstance(held, RowFormat):
        raise found.wrong("ends in no FORMAT that is a RowFormat")
    if held.name != name:
        raise found.wrong(f"calls itself {held.name!r}", "give both the same name")
    if not set(held.makes) <= set(get_args(RowKind)):
        raise found.wrong(f"makes rows of {', '.join(held.makes)}", f"the kinds are {', '.join(get_args(RowKind))}")
    makes = {kind: _guarded(found, make) for kind, make in held.makes.items()}
    return replace(held, makes=makes, looks_right=found.guarded(held.looks_right))


def _guarded(found: Plugin, make: MakeExamples) -> MakeExamples:
    """Return what makes a plug-in's examples; its errors and odd results are told with the package's name."""
    inner = found.guarded(make, RowError)

    def examples(source: RecognisedFormat, values: Mapping[str, Any]) -> list[Example]:
        made = inner(source, values)
        if not isinstance(made, list) or not all(isinstance(one, get_args(Example)) for one in made):
            raise found.wrong(f"returned {made!r:.80}; expected a list of examples")
        return made

    return examples


def format_code(name: str) -> list[str]:
    """Return what tells one version of a plug-in's format from another; nothing for ours, which our version tells."""
    found = None if name == "auto" or name in OWN_FORMATS else plugin("format", name, OWN_FORMATS)
    if found is None:
        return []
    source = inspect.getsource(import_module(found.entry.module))
    return [found.package, hashlib.sha256(source.encode()).hexdigest()]


BY_NAME = WithPlugins(OWN_FORMATS, format_of_plugin)


def formats_for(kind: RowKind) -> tuple[RowFormat, ...]:
    """Return the formats whose rows can become rows of a kind, in the order of the table."""
    return tuple(known for known in FORMATS if kind in known.makes)
