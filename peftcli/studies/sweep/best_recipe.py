"""`best.yaml`: the recipe with the best values, and comments on why they are the best."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.yaml.dump_recipe import as_written, dump_plain
from peftcli.studies.report.shell.report_numbers import ScoreScale
from peftcli.studies.sweep.space.point_overrides import point_text
from peftcli.studies.sweep.sweep_answer import TIES
from peftcli.studies.sweep.sweep_record import Sweep

WIDTH = 118  # of a comment


def best_recipe_text(loaded: LoadedRecipe, sweep: Sweep, edges: Sequence[str]) -> str:
    """Return the text of the best recipe: what its author wrote, with the best values, under comments on why.

    Args:
        loaded: the recipe with the best point's overrides, without the seed of a winner's run.
        sweep: the record; it has a best.
        edges: a sentence for each best value at the edge of what was searched.
    """
    data = as_written(loaded.tree)
    data["output_dir"] = f"{loaded.recipe.output_dir}-best"
    lines = [line for comment in comments(sweep, edges) for line in textwrap.wrap(comment, WIDTH)]
    return "".join(f"# {line}\n" for line in lines) + dump_plain(data)


def comments(sweep: Sweep, edges: Sequence[str]) -> list[str]:
    """Return sentences on why the best values are the best, what ties with them, and what was searched."""
    best = sweep.best
    assert best is not None
    scale = ScoreScale(sweep.metric, sweep.greater_is_better)
    seeds = len(best.seeds)
    score = scale.score(best.score, best.interval)
    score += f", 95% interval {scale.range(best.interval)}" if best.interval is not None else ""
    found = [
        f"The best of {sweep.command or 'peft sweep'}",
        f"{point_text(best.values)}: {sweep.metric} {score}, on {seeds} fresh "
        f"seed{'' if seeds == 1 else 's'} ({', '.join(map(str, best.seeds))}) and {sweep.rows} held-out rows.",
        *(f"Searched: {key} in {text}." for key, text in sweep.keys.items()),
    ]
    ties = [one for one in sweep.winners if one.verdict in TIES and one.values != best.values and one.score is not None]
    found += [f"Tied with it: {point_text(one.values)} ({scale.score(one.score, one.interval)})." for one in ties]
    return [*found, *(f"Note: {edge}." for edge in edges)]
