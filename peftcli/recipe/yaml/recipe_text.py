"""Read the text of a recipe file, and say why if that is impossible."""

from __future__ import annotations

from pathlib import Path

from peftcli.errors import Problem, UserError
from peftcli.suggestions import did_you_mean, nearest_files

_MOST_BYTES = 1 << 20  # a recipe has a few kilobytes; a larger file, or a device, was named by mistake


def read_recipe_text(path: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        UserError: there is no such file, or it is a directory, unreadable, not UTF-8 or too large.
    """
    file = str(path)
    try:
        if path.is_dir():
            raise UserError(Problem("this is a directory, not a recipe", file=file, suggestion=_inside(path)))
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(Problem("there is no such file", file=file, suggestion=_nearest(path))) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(Problem(f"cannot read this file: {reason}", file=file)) from error
    if len(raw) > _MOST_BYTES:
        raise UserError(Problem("larger than 1 MiB: this is not a recipe", file=file, suggestion=_EXPECTED))
    if b"\0" in raw:
        raise UserError(Problem("a binary or UTF-16 file, not a recipe", file=file, suggestion=_EXPECTED))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(Problem("not UTF-8 text", file=file, line=line, suggestion="save the file as UTF-8")) from error


_EXPECTED = "a recipe is a YAML text file with model, task, data and method"


def _inside(path: Path) -> str:
    recipes = [str(found) for found in sorted(path.glob("*.y*ml"))[:8]]
    return f"name one of its recipes: {', '.join(recipes)}" if recipes else "name a YAML file"


def _nearest(path: Path) -> str:
    names: dict[str, Path] = {}
    for folder in (path.parent, Path("configs"), Path("recipes"), Path()):
        try:
            names |= {entry.name: entry for entry in folder.glob("*.y*ml") if entry.name not in names}
        except OSError:
            continue
    wanted = path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml"
    close = nearest_files(wanted, names, cutoff=0.6)
    if close:
        return did_you_mean(names[name] for name in close)
    return f"recipes near by: {', '.join(str(found) for found in list(names.values())[:6])}" if names else _EXPECTED
