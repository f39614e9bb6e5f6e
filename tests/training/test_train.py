"""A whole training: files, losses that do not depend on how a batch is computed, resume, stopping."""

from __future__ import annotations

from peftcli.training.run import train


def test_a_causal_run_leaves_the_directory_that_was_promised(recipe, recorder) -> None:
    loaded = recipe(data__val_set_size=4)
    summary = train(loaded, reporter=recorder)
    print(recorder.facts, recorder.losses, recorder.notes, recorder.evaluations, summary)
    from pathlib import Path

    print(sorted(str(p) for p in Path(loaded.recipe.output_dir).rglob("*")))
