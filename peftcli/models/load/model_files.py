"""Where a model's files are: a directory, a GGUF file, an installed package, or the hub. No torch here."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from peftcli.errors import Problem, UserError
from peftcli.locations import resolve_location
from peftcli.suggestions import did_you_mean, nearest

_KEY = "model.name_or_path"


@dataclass(frozen=True)
class ModelSource:
    """The files of one model.

    Args:
        kind: directory, gguf or hub.
        name: as the recipe names it.
        path: directory, or GGUF file; None on the hub.
    """

    kind: Literal["directory", "gguf", "hub"]
    name: str
    path: Path | None = None

    def location(self) -> str:
        """Return the first argument of a transformers `from_pretrained`."""
        if self.path is None:
            return self.name
        return str(self.path.parent if self.kind == "gguf" else self.path)

    def keywords(self, *, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
        """Return the keywords of a transformers `from_pretrained` that say where files come from."""
        keywords: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if self.kind == "gguf" and self.path is not None:
            keywords["gguf_file"] = self.path.name
        if self.kind == "hub":
            keywords |= {"revision": revision or "main", "local_files_only": not hub_is_reachable()}
        else:
            keywords["local_files_only"] = True
        return keywords


def find_source(name: str) -> ModelSource:
    """Return where the model that a recipe names lies.

    Raises:
        UserError: a path that does not exist, a directory without a model, several GGUF files, a file of another kind.
    """
    try:
        path = resolve_location(name)
    except UserError as error:
        raise UserError([replace(problem, key=_KEY) for problem in error.problems]) from error
    if path is None:
        return ModelSource("hub", name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UserError(
                Problem(
                    f"{name!r} is a file, not a model directory",
                    key=_KEY,
                    suggestion="name the directory that holds config.json, or a GGUF file",
                )
            )
        return ModelSource("gguf", name, path)
    return _directory(name, path)


def _directory(name: str, path: Path) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource("directory", name, path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelSource("gguf", name, ggufs[0])
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise UserError(Problem(f"{name!r} holds several GGUF files", key=_KEY, suggestion=f"name one of: {names}"))
    if (path / "adapter_config.json").is_file():
        hint = "this is an adapter; name its base model, or give the adapter as method.init_from"
    else:
        inside = sorted(str(file.parent) for file in path.glob("*/config.json"))
        hint = did_you_mean(repr(directory) for directory in inside[:1])
        hint = hint or "a model directory holds config.json and *.safetensors files"
    raise UserError(Problem(f"the directory {name!r} has no config.json", key=_KEY, suggestion=hint))


def local_near_misses(name: str) -> str | None:
    """Return a directory here that resembles a hub id, for a message; None without one."""
    path = Path(name)
    if not path.parent.is_dir():
        return None
    near = nearest(path.name, (child.name for child in path.parent.iterdir() if child.is_dir()))
    return str(path.parent / near[0]) if near else None


def is_offline() -> bool:
    """Tell whether the environment forbids the hub."""
    wanted = {"1", "ON", "YES", "TRUE"}
    return any(os.environ.get(name, "").upper() in wanted for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


@cache
def hub_is_reachable() -> bool:
    """Tell whether the hub's host answers, within 3 s: the hub client alone would retry for 20 s without a network."""
    if is_offline():
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves names, so nothing can be told from here
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname or "huggingface.co", port), timeout=3):
            return True
    except OSError:
        return False
