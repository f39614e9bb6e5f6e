"""The safetensors files of a base model, found as transformers finds them, and the tensors in them."""

from __future__ import annotations

from pathlib import Path

from peftcli.errors import UserError
from peftcli.models.load.model_files import ModelSource
from peftcli.models.weights.tensor_source import Stored, tensors_of_file
from peftcli.models.weights.weight_index import INDEX, SINGLE, files_by_tensor, weight_files


def base_directory(source: ModelSource, revision: str | None) -> Path:
    """Return the directory with a base's files; the hub's cached copy for a hub id.

    Raises:
        UserError: the hub's copy is not in the cache and cannot be fetched.
    """
    if source.path is not None:
        return source.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            source.name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"the base model {source.name} is not in the cache and the hub cannot be reached",
            suggestion="go online, or name a local copy with --base",
        ) from error
    return Path(found)


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Return the tensors of a model directory by their name in the file.

    Raises:
        UserError: there are no safetensors files, or some of them are missing or damaged.
    """
    files = weight_files(directory)
    if not files:
        raise UserError(
            f"{directory} has neither {SINGLE} nor {INDEX}",
            suggestion="merging reads safetensors; save the base model in that format and name it with --base",
        )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{directory} lacks {len(missing)} of its weight files, such as {missing[0]}",
            suggestion="copy or download the model again",
        )
    found: dict[str, Stored] = {}
    for file in files:
        found.update(tensors_of_file(file))
    if (directory / SINGLE).is_file():
        return found
    names = files_by_tensor(directory / INDEX)
    absent = sorted(set(names) - set(found))
    if absent:
        raise UserError(f"{directory}: {absent[0]} is in {INDEX} but in no file", suggestion="download the model again")
    return {name: stored for name, stored in found.items() if name in names}
