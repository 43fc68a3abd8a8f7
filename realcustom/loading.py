"""How models are found and read: the options that diffusers takes, and the libraries' errors as a UsageError in one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from realcustom.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Where a model's files come from and which of them are read; diffusers' own names."""

    variant: str | None = None  # of the weights' files, e.g. "fp16"
    use_safetensors: bool | None = None  # None = where they are there
    revision: str | None = None  # of the base on the hub: branch, tag or commit
    config: str | None = None  # for a single file: folder or hub id with its configuration; None = diffusers' guess
    token: str | bool | None = None  # of the hub
    cache_dir: str | Path | None = None  # None = the hub library's own
    local_files_only: bool = False  # nothing is downloaded
    force_download: bool = False

    def hub(self) -> dict[str, Any]:
        """The arguments of a download, for any library."""
        names = ("token", "cache_dir", "local_files_only", "force_download")
        return {name: getattr(self, name) for name in names}

    def given(self) -> list[str]:
        """Names of the options that are not at their default."""
        return [option.name for option in fields(self) if getattr(self, option.name) != option.default]


@contextlib.contextmanager
def load_refusals(kind: str, model: str) -> Iterator[None]:
    """A context in which files that are missing, broken or of another model, or a hub that does not answer, become a
    UsageError, and the libraries say nothing of what they take for odd (a VAE of another class, no torchvision).

    Args:
        kind: of model, for the message.
        model: folder or hub id.
    """
    try:
        with without_warnings():
            yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except (  # what the libraries say of folders and the hub; a key that a configuration lacks, a weight that does not fit
        OSError,
        ValueError,
        ImportError,
        KeyError,
        RuntimeError,
        SafetensorError,
    ) as error:
        said = f"its files lack {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UsageError(f"cannot load the {kind} {model}: {said}") from error


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """A context in which diffusers and transformers log errors alone."""
    libraries = (diffusers.logging, transformers.logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(max(library.get_verbosity(), logging.ERROR))
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
