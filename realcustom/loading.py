"""Errors of diffusers and transformers about a model that they cannot load, as a UsageError in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError

from realcustom.errors import UsageError


@contextlib.contextmanager
def load_refusals(kind: str, model: str) -> Iterator[None]:
    """A context in which a missing or broken file, or a hub that does not answer, becomes a UsageError.

    Args:
        kind: of model, for the message.
        model: folder or hub id.
    """
    try:
        yield
    except UsageError:
        raise
    except (
        OSError,
        ValueError,
        ImportError,
        SafetensorError,
    ) as error:  # what the libraries say of folders and the hub
        raise UsageError(f"cannot load the {kind} {model}: {error}") from error
