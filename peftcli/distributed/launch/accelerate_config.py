"""What a config of Accelerate does to a recipe.

Where the recipe leaves a key open, the config decides. Where both say something and differ, the run is refused: nobody
guesses which one the user meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from peftcli.distributed.launch.accelerate_settings import ANY, NOTHING, SETTINGS, Change, Idle, Refused, Setting
from peftcli.errors import Problem, UserError
from peftcli.recipe.load_recipe import LoadedRecipe

_TRUE = ("1", "true", "t", "yes", "y", "on")
_FALSE = ("0", "false", "f", "no", "n", "off", "none")


@dataclass(frozen=True)
class Finding:
    """What one setting of a config means for this run."""

    setting: Setting
    written: str
    meaning: Change | Refused | Idle

    @property
    def said(self) -> str:
        """The setting as the config has it."""
        return self.setting.name if ":" in self.setting.name else f"{self.setting.name}: {self.written}"


def findings(environ: Mapping[str, str]) -> list[Finding]:
    """Return what the variables of `accelerate launch` mean; nothing where it did not start this process."""
    return list(_findings(environ))


def _findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    for setting in SETTINGS:
        written = environ.get(setting.variable, "").strip()
        counts = setting.within is None or _truth(environ.get(setting.within, "false")) != "false"
        if not written or not counts:
            continue
        meaning = next(
            (setting.values[one] for one in (written.lower(), _truth(written), ANY) if one in setting.values), NOTHING
        )
        if meaning != NOTHING:
            yield Finding(setting, written, meaning)


def _truth(written: str) -> str:
    """Return `true` or `false` for each word that means one of them, and any other in small letters."""
    word = written.strip().lower()
    return "true" if word in _TRUE else "false" if word in _FALSE else word


@dataclass(frozen=True)
class ForRecipe:
    """What a config of Accelerate does to a recipe.

    Args:
        overrides: `key=value` changes of it.
        notes: what of the config counts, and what has no effect.
    """

    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def for_recipe(loaded: LoadedRecipe, environ: Mapping[str, str]) -> ForRecipe:
    """Return what the config that started this process does to a recipe.

    Raises:
        UserError: it asks for what cannot be done here, or for other than the recipe says; with every such setting.
    """
    problems: list[Problem] = []
    changes: dict[str, Finding] = {}
    idle: list[str] = []
    if _cut_short(environ):
        problems.append(
            Problem(
                "Accelerate's config asks for several processes on CPUs, but `accelerate launch` starts only one",
                suggestion="start them with `peft ... --num-processes N` or torchrun; or give the config mpirun_config",
            )
        )
    for found in findings(environ):
        meaning = found.meaning
        if isinstance(meaning, Idle):
            idle.append(f"{found.said} ({meaning.reason})")
        elif isinstance(meaning, Refused):
            problems.append(
                Problem(f"Accelerate's config says {found.said}, which cannot be done", suggestion=meaning.remedy)
            )
        else:
            value = found.written if meaning.value is None else meaning.value
            written = _in_recipe(loaded, meaning.key)
            if written is None:
                changes[f"{meaning.key}={value}"] = found
            elif written != value:
                problems.append(_contradiction(loaded, found, meaning.key, value))
    if problems:
        raise UserError(problems)
    notes = [f"Accelerate's config decides: {', '.join(changes)}"] if changes else []
    notes += [f"without effect in Accelerate's config: {'; '.join(idle)}"] if idle else []
    return ForRecipe(tuple(changes), tuple(notes))


def _in_recipe(loaded: LoadedRecipe, key: str) -> str | None:
    """Return what the recipe says of a key, as in YAML; None where it leaves it open."""
    block, name = key.split(".")
    tree = loaded.tree.data.get(block)
    value = tree.get(name) if isinstance(tree, dict) else None
    return None if value in (None, "auto") else str(value).lower()


def _contradiction(loaded: LoadedRecipe, found: Finding, key: str, value: str) -> Problem:
    said, written = found.said, _in_recipe(loaded, key)
    return loaded.problem(
        key,
        f"{key} = {written}, but Accelerate's config says {said}, which is {key}: {value}",
        f"leave {key} out of the recipe, or {said.split(':')[0]} out of the config",
    )


def _cut_short(environ: Mapping[str, str]) -> bool:
    """Whether `accelerate launch` was to start several CPU processes, and started this one alone."""
    alone = not any(
        environ.get(name) for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    )
    return alone and _truth(environ.get("ACCELERATE_USE_CPU", "")) == "true" and "MASTER_PORT" in environ
