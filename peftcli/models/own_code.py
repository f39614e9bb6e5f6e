"""Python code that comes with a model: which files would run, and whether the person who types the command allows it.

A recipe of one's own, or an option of the command, allows it. A run's recipe.yaml does not, since it may be a
stranger's; a run that was trained here keeps working because `peft train` remembers what it was allowed to run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftcli.errors import UserError
from peftcli.locations import CACHE_VARIABLE, user_cache
from peftcli.models.load.model_files import find_source
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import ModelSpec
from peftcli.shown_text import some_of
from peftcli.typed_record import read_object

OPTION = "--trust-remote-code"
_NAMES_CODE = ("config.json", "tokenizer_config.json")
"""Files whose `auto_map` names classes in Python files."""
_SHOWN = 8


@dataclass(frozen=True)
class OwnCode:
    """The Python code of one model.

    Args:
        place: its directory, or its name on the hub.
        mapped: Python files that its configs name.
        files: SHA-256 of each Python file below the directory; empty where they are not on this disk.
    """

    place: str
    mapped: frozenset[str]
    files: Mapping[str, str]

    def __str__(self) -> str:
        names = sorted(self.mapped | self.files.keys())
        return f"{some_of(names, _SHOWN)} in {self.place}" if names else f"what the hub's {self.place} holds"


def with_allowed_code(loaded: LoadedRecipe, spec: ModelSpec | None = None) -> LoadedRecipe:
    """Return a recipe that may run what its `model.trust_remote_code` says, or refuse it.

    Args:
        loaded: one that does not set `unasked_code` passes as it is.
        spec: what will be loaded, if not the recipe's base.

    Raises:
        UserError: a run's recipe asks for the code of its model, nobody typed the option, and the run was not trained
            here with that code; names the Python files. Without its code the model might load as another class.
    """
    code = own_code(spec or loaded.recipe.model) if loaded.unasked_code else None
    if code is None:
        return loaded
    if not _is_remembered(Path(loaded.path).parent, code):
        message = f"a recipe in a run directory asks to run the Python code of its model: {code}"
        raise UserError(loaded.problem("model.trust_remote_code", message, f"read that code; {OPTION} runs it"))
    model = loaded.recipe.model.model_copy(update={"trust_remote_code": True})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"model": model}), unasked_code=False)


def own_code(spec: ModelSpec) -> OwnCode | None:
    """Return the Python code that comes with a model; None where its files name none."""
    try:
        source = find_source(spec.name_or_path)
    except UserError:  # loading it says so
        return None
    directory = source.path
    if source.kind == "gguf":
        return None
    if source.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.name, "config.json", revision=spec.revision)
        directory = Path(cached).parent if isinstance(cached, str) else None
    if directory is None:
        return OwnCode(source.name, frozenset(), {})
    mapped = frozenset(file for name in _NAMES_CODE for file in _mapped(directory / name))
    if not mapped and not (directory / "custom_generate" / "generate.py").is_file():
        return None
    return OwnCode(str(directory), mapped, dict(_python_files(directory)))


def _python_files(directory: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(directory.rglob("*.py")):
        with suppress(OSError):
            yield str(file.relative_to(directory)), hashlib.sha256(file.read_bytes()).hexdigest()


def _mapped(file: Path) -> Iterator[str]:
    """Yield the Python files that the `auto_map` of a config names; `REPO--MODULE.CLASS` is a file of another one."""
    try:
        found: Any = read_object(file).get("auto_map")
    except UserError:
        return
    values = list(found.values()) if isinstance(found, Mapping) else [found]
    for value in (one for given in values for one in (given if isinstance(given, list | tuple) else [given])):
        if isinstance(value, str) and value:
            repository, _, name = value.rpartition("--")
            module = name.rpartition(".")[0] or name
            yield f"{module}.py of the hub's {repository}" if repository else f"{module}.py"


def remember_allowed_code(loaded: LoadedRecipe) -> None:
    """Note in the user's cache which code the run of this recipe may execute without being asked for again."""
    recipe = loaded.recipe
    code = own_code(recipe.model) if recipe.model.trust_remote_code else None
    file = _memory(Path(recipe.output_dir or "."))
    if code is None or file is None or not code.files:
        return
    text = json.dumps({"mapped": sorted(code.mapped), "files": dict(code.files)})
    with suppress(OSError):  # without it the next command asks
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.unlink(missing_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)


def _is_remembered(run: Path, code: OwnCode) -> bool:
    """Tell whether this user trained that very run with code that holds all of this."""
    file = _memory(run)
    try:
        if file is None or not code.files or not _is_private(file):
            return False
        known = read_object(file)
    except (OSError, UserError):
        return False
    files, mapped = known.get("files"), known.get("mapped")
    if not isinstance(files, dict) or not isinstance(mapped, list):
        return False
    return code.files.items() <= files.items() and code.mapped <= set(map(str, mapped))


def _is_private(file: Path) -> bool:
    """Tell whether only this user can have written a file; there is nothing to see on systems without owners."""
    if not hasattr(os, "getuid"):
        return True
    about = file.lstat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _memory(run: Path) -> Path | None:
    """Return the file that remembers what a run may execute; None for a user without a cache directory."""
    given = os.environ.get(CACHE_VARIABLE)
    cache = Path(given) if given else user_cache()
    name = hashlib.sha256(str(run.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
    return None if cache is None else cache / "allowed-code" / f"{name}.json"
