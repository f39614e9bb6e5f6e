"""A first recipe from a few answers: what the rows say, what is recommended for the model, and why, as comments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftcli.analysis.advice.advised_recipe import advised_recipe
from peftcli.analysis.advice.recommendation import Advice, recommend
from peftcli.errors import UserError
from peftcli.models.load.load_model import load_config
from peftcli.models.model_tasks import possible_tasks
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import LoadedRecipe, recipe_from_data
from peftcli.recipe.schema import ModelSpec
from peftcli.recipe.yaml.dump_recipe import dump_block
from peftcli.recipe.yaml.recipe_comments import comment_lines
from peftcli.recipe.yaml.yaml_lines import parse_yaml
from peftcli.starting.look_at_rows import Rows, default_output


@dataclass(frozen=True)
class Answers:
    """What was asked for.

    Args:
        model: a hub id or a directory.
        rows: the data, looked at.
        task, method: None leaves them to the rows, the model and `peft recommend`.
        memory: bytes of one device; None where nobody said.
        name: the recipe's file, for messages.
    """

    model: str
    rows: Rows
    task: str | None
    method: str | None
    memory: int | None
    name: str


def tasks_of_model(model: str) -> list[str] | None:
    """Return the tasks that a model can be trained for; None where its config cannot be had.

    Raises:
        UserError: the model is a path, and nothing is there.
    """
    try:
        return list(possible_tasks(load_config(ModelSpec(name_or_path=model))))
    except UserError:
        if _is_local(model):
            raise
        return None


def likely_tasks(rows: Rows, able: Sequence[str] | None) -> list[str]:
    """Return the tasks that the rows are for and the model can do, the likeliest first.

    Raises:
        UserError: there is none.
    """
    fit = [name for name in rows.tasks if able is None or name in able]
    if not fit:
        raise UserError(
            f"the rows are for {' or '.join(rows.tasks)}; the model can do {', '.join(able or ()) or 'no task'}",
            suggestion="choose another model, or other rows: docs/data.md shows the formats of each task",
        )
    return fit


def first_recipe(answers: Answers) -> str:
    """Return the text of a recipe that validates.

    Raises:
        UserError: the rows are not for the task, or there is no such method, task or local model.
    """
    task = answers.task or likely_tasks(answers.rows, tasks_of_model(answers.model))[0]
    if task not in NAMES.tasks:
        raise UserError(f"--task {task}: there is no such task", suggestion=f"choose one of: {', '.join(NAMES.tasks)}")
    if task not in answers.rows.tasks:
        fits = " or ".join(answers.rows.tasks)
        raise UserError(f"--task {task}: the rows are for {fits}", suggestion="docs/data.md shows the formats of rows")
    found = answers.rows.tasks[task]
    data: dict[str, Any] = {
        "model": {"name_or_path": answers.model},
        "task": task,
        "data": {"path": answers.rows.path, "format": found.format.name, "val_set_size": 0.1, "max_length": 1024},
        "method": {"name": answers.method or "lora"},
        "training": {"num_train_epochs": 3, **({"loss_type": found.format.loss} if found.format.loss else {})},
        "output_dir": default_output(answers.rows.path),
    }
    loaded = recipe_from_data(answers.name, data, NAMES)
    lines, notes = _advice(loaded, answers)
    head = [f"{answers.rows.path}: {found.evidence}" if found.evidence else answers.rows.path]
    head.append(f"columns of the rows: {', '.join(answers.rows.columns)}")
    if len(answers.rows.tasks) > 1:
        head.append(
            f"the rows could also be used for: {', '.join(name for name in answers.rows.tasks if name != task)}"
        )
    head += notes
    head.append(f"next: peft inspect {answers.name}, peft train {answers.name}; docs/recipes.md has every key")
    plain = "".join(dump_block(key, value) for key, value in loaded.tree.data.items())
    body = advised_recipe(loaded, lines) if lines else plain
    comments = [line for said in ("Made by `peft init`.", *head) for line in comment_lines(said)]
    text = "\n".join([*comments, _explained(body)])
    recipe_from_data(answers.name, parse_yaml(text, {}).data, NAMES)
    return text


def _advice(loaded: LoadedRecipe, answers: Answers) -> tuple[list[Advice], list[str]]:
    """Return what is recommended, and remarks; a method that was asked for is kept, with its own defaults."""
    try:
        found = recommend(loaded, answers.memory)
    except UserError as error:
        if _is_local(answers.model):
            raise
        first = error.problems[0].message
        return [], [f"nothing is recommended, because the model's config could not be read: {first}"]
    lines = found.lines
    advised = next(line.value for line in lines if line.key == "method.name")
    if answers.method is None or answers.method == advised:
        return lines, found.notes
    kept = [line for line in lines if not line.key.startswith("method.") and line.key != "training.learning_rate"]
    own = f"the method {answers.method} was asked for; `peft recommend` would take {advised}"
    name = next(line for line in lines if line.key == "method.name")
    asked = Advice(
        "method.name", answers.method, "it was asked for", "you", "this recipe", "none", name.date, name.against
    )
    return [asked, *kept], [own, *found.notes]


def _is_local(model: str) -> bool:
    from peftcli.locations import resolve_location

    return resolve_location(model) is not None


_MEANING = {
    "  val_set_size: ": "rows held out to evaluate on: a share, or a number of rows",
    "  max_length: ": "tokens of a row at most; `peft inspect` shows how long the rows are",
    "  num_train_epochs: ": "passes over the rows; the best evaluated adapter is kept",
}


def _explained(body: str) -> str:
    """Return the recipe with a remark behind the keys that somebody new would change first."""
    lines = []
    for line in body.splitlines():
        meaning = next((text for start, text in _MEANING.items() if line.startswith(start)), None)
        lines.append(line if meaning is None or " # " in line else f"{line}  # {meaning}")
    return "\n".join(lines) + "\n"
