"""The files of a base that travel with every model made of it: tokenizer, processors, licence, code of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from peftcli.models.load.model_files import ModelSource, hub_is_reachable

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

TOKENIZER_PATTERNS = (
    "*tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "*vocab*.json",
    "*vocab*.txt",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.bpe",
    "bpe.codes",
    "*.tiktoken",
    "tekken.json",
    "normalizer.json",
    "*.jinja",
    "chat_template*.json",
    "additional_chat_templates/*.jinja",
)
OTHER_PATTERNS = (
    "*processor*.json",
    "feature_extractor*.json",
    "licen[cs]e*",
    "*-licen[cs]e*",
    "notice*",
    "copying*",
    "*use_policy*",
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".index.json")
_CODE = "*.py"


def base_files(source: ModelSource, revision: str | None) -> Path | None:
    """Return the directory with the base's files; of the hub, its cached copy. None for a GGUF file.

    What the cache lacks is fetched if the hub can be reached; a file that cannot be had is not there.
    """
    if source.kind == "gguf":
        return None
    if source.path is not None:
        return source.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [*TOKENIZER_PATTERNS, *OTHER_PATTERNS, *(text.upper() for text in OTHER_PATTERNS), _CODE, "*.json"]
    try:
        found = snapshot_download(
            source.name, revision=revision, allow_patterns=wanted, local_files_only=not hub_is_reachable()
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None
    return Path(found)


def tokenizer_files(base: Path, names: tuple[str, ...] = ()) -> list[Path]:
    """Return the base's tokenizer files, relative to it.

    Args:
        base: its directory.
        names: of the files of this tokenizer's class.
    """
    return sorted({*_matching(base, TOKENIZER_PATTERNS), *(Path(name) for name in names if (base / name).is_file())})


def other_files(base: Path) -> list[Path]:
    """Return the base's processor and licence files, and its code if its configuration names some; relative to it."""
    found = _matching(base, OTHER_PATTERNS)
    if any("auto_map" in read_object(base / name) for name in ("config.json", TOKENIZER_CONFIG)):
        found += [file.relative_to(base) for file in base.rglob(_CODE) if not _hidden(file.relative_to(base))]
    return sorted(set(found))


def copy_files(base: Path, files: list[Path], directory: Path) -> None:
    """Copy files of a base, byte for byte; what is there already is replaced."""
    for file in files:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / file, directory / file)


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where the file is missing or holds no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_object(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object as transformers does: two spaces, in the order given."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _matching(base: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [file for file in _files(base) if any(fnmatchcase(file.as_posix().lower(), text) for text in patterns)]


def _files(base: Path) -> Iterator[Path]:
    """Yield the files of a directory and of its folder of templates, weights and code left out; relative to it."""
    for file in (*base.glob("*"), *base.glob("additional_chat_templates/*")):
        if file.is_file() and not file.name.endswith((*_WEIGHTS, ".py")) and not _hidden(file.relative_to(base)):
            yield file.relative_to(base)


def _hidden(file: Path) -> bool:
    return any(part.startswith((".", "__")) and part != "__init__.py" for part in file.parts)
