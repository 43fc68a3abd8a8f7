"""Put a folder onto the hub, by the hub's own client. Nothing is asked of the hub before `push`."""

from __future__ import annotations

from pathlib import Path

from realcustom.errors import UsageError


def check(repository: str) -> None:
    """Raise UsageError for a name that the hub does not take, and where no token is set."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"--push: {error}") from error
    if get_token() is None:
        raise UsageError(f"--push {repository}: no token is set; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str) -> str:
    """Upload the files of `folder`, and return the address of the commit. The repository is made where there is none.

    Raises:
        UsageError: the hub does not answer, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP client that the hub's has

    api = HfApi()
    try:
        name = api.create_repo(repository, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="An adapter").commit_url)
    except (HTTPError, OSError) as error:  # refusals of the hub are both
        raise UsageError(f"--push {repository}: {error or type(error).__name__}") from error
