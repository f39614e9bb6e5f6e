"""Handing the trained adapter to the Hugging Face hub, when `training.push_to_hub` names a repository."""

from __future__ import annotations

from pathlib import Path

from peftcli.errors import Problem, UserError
from peftcli.shown_text import first_line


def hub_problems(repository: str | None) -> list[Problem]:
    """Return why a push would fail, as far as that shows without the network."""
    if repository is None:
        return []
    from huggingface_hub import get_token

    if get_token() is None:
        remedy = "log in with `hf auth login`, or set HF_TOKEN"
        return [Problem("pushing needs a Hugging Face token", key="training.push_to_hub", suggestion=remedy)]
    return []


def push(folder: Path, repository: str) -> str:
    """Upload a directory and return its address.

    Raises:
        UserError: the hub cannot be reached or refuses; the run itself is finished.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"the run is finished and saved, but {folder} could not be pushed to {repository}: {first_line(error)}",
            suggestion=f"push it later: hf upload {repository} {folder}",
        ) from error
