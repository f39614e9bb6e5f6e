"""General text that no training data are made of: a language model's loss on it, before and after, shows forgetting."""

from __future__ import annotations

from pathlib import Path

from peftcli.data.prepare import prepare_for_evaluation
from peftcli.data.rows.row_set import RowSet
from peftcli.inference.opened_run import OpenedRun
from peftcli.recipe.schema import DataSpec

GENERAL_TEXT = "100 short English paragraphs on everyday subjects, written for this project (MIT)"
"""What the text in the package is."""


def general_rows(run: OpenedRun, file: Path | None = None) -> RowSet:
    """Return rows of general text for a run's model, every token supervised.

    Args:
        file: a data file whose rows are texts; None is the text in the package.

    Raises:
        UserError: the file cannot be read as texts.
    """
    path = str(file or Path(__file__).with_name("general_text.jsonl"))
    spec = DataSpec(path=path, format="text", max_length=run.data_spec.max_length, cache_dir=run.data_spec.cache_dir)
    rows, _notes = run.world.main_first(lambda: prepare_for_evaluation(path, spec, run.recipe.task, run.tokenizer))
    return rows
