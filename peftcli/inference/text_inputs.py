"""What turns text into tokens, compared with what a run recorded: tokenizer, chat template, validation rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli.data.chat.named_templates import choose_template
from peftcli.data.rows.row_fingerprint import row_fingerprint
from peftcli.data.rows.row_set import RowSet
from peftcli.data.store.cache_key import tokenizer_fingerprint
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec, Recipe
from peftcli.record.run_directory import RunDirectory
from peftcli.record.run_inputs import NO_TEMPLATE, RunInputs, differences
from peftcli.tasks.task_table import task_info


def template_fingerprint(text: str | None) -> str:
    """Return a hash of a chat template; None is plain text."""
    return NO_TEMPLATE if text is None else hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def recorded_inputs(run: Path) -> RunInputs:
    """Return what a run recorded of its inputs: in summary.json, or in the last checkpoint of an unfinished one.

    Nothing is known of an imported run, or an earlier version's. A file that cannot be read records nothing either:
    whoever needs it says so.
    """
    directory = RunDirectory(run)
    try:
        if directory.summary_file.is_file():
            found = directory.summary().get("inputs")
        else:
            found = directory.checkpoints().latest(lambda _damage: None, lambda tree, _path: tree["progress"]["inputs"])
    except (UserError, KeyError, TypeError):
        return RunInputs()
    return RunInputs.from_dict(found if isinstance(found, Mapping) else None)


def changed_texts(run: Path, recipe: Recipe, tokenizer: Any) -> list[str]:
    """Return notes: the tokenizer or the chat template is not the one that the run was trained with.

    Args:
        tokenizer: of the run's base, as it is now.
    """
    then = recorded_inputs(run)
    data = recipe.data or DataSpec()
    template = None
    if then.template is not None and task_info(recipe.task).reads == "text":
        try:
            template = choose_template(data.chat_template, tokenizer, data.chat_template_kwargs)
        except UserError:  # a file that is gone: said where the rows are read
            then = RunInputs(tokenizer=then.tokenizer)
    now = RunInputs(
        tokenizer=tokenizer_fingerprint(tokenizer),
        template=template_fingerprint(template.text if template else None),
    )
    changed = differences(then, now)
    return [f"{what} changed since training: results can differ" for what in (*changed.decisive, *changed.possible)]


def changed_validation(run: Path, sets: Mapping[str, RowSet]) -> list[str]:
    """Return notes: validation rows that are not those of the run's own evaluations."""
    then = recorded_inputs(run).validation_rows or {}
    rows = {name: found for name in then if (found := row_fingerprint(sets[name]) if name in sets else None)}
    changed = differences(RunInputs(validation_rows=then), RunInputs(validation_rows=rows))
    return [
        f"{what} changed since training: this number is not comparable with the one in summary.json"
        for what in changed.decisive
    ]
