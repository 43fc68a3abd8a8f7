"""The adapters that a server offers: their names, where they are, and what their checkpoints say of themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from realcustom import config
from realcustom.checkpoint import adapter_sha256, read_header
from realcustom.errors import UsageError
from realcustom.identity import model_identity, same_content
from realcustom.inference.models import PREFIX, ServedModel
from realcustom.saved import saved_in
from realcustom.store import check_readable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def find_models(base: str, adapter: str | None, adapters: Sequence[str] = ()) -> tuple[ServedModel, ...]:
    """All models of a server; the first is that of a request that names none. Reads checkpoints, loads no model.

    Args:
        base: diffusers folder or hub id.
        adapter: path or storage URI of the default adapter; None = requests that name no model get the base alone.
        adapters: further ones of the same base, each as NAME=PATH.
    Raises:
        UsageError: an adapter that is not there, is no checkpoint, has the name of another or is of another base.
    """
    saved = saved_in(base) if adapter is None else None
    default = adapter if saved is None else saved.adapter
    identity = model_identity(base)
    models = [ServedModel(id=identity, adapter=None)]
    if default is not None:
        description = describe_adapter(default)
        models.insert(0, _served(description["id"], description, adapter))  # one saved with its base is loaded with it
    bases = [identity, *(str(model.adapter["base"]) for model in models if model.adapter)]
    for name, source in map(_parse, adapters):
        if any(model.id == PREFIX + name for model in models):
            raise UsageError(f"serve.adapters: two adapters have the name '{name}'; give each its own")
        description = describe_adapter(source)
        if not any(same_content(description["base"], known) for known in bases):
            raise UsageError(
                f"serve.adapters: {name} was trained for the base {description['base']}, this server's is {identity}; "
                f"serve it with its own base"
            )
        models.append(_served(name, description, source))
    return tuple(models)


def describe_adapter(uri: str) -> dict[str, Any]:
    """An adapter checkpoint's metadata as plain data; without its path. Raises UsageError where it cannot be read."""
    check_readable(uri)
    header, digest = read_header(uri), adapter_sha256(uri)
    return {
        "id": digest[:12],
        "sha256": digest,
        "base": header.base,
        "image_encoder": header.image_encoder,
        "settings": config.to_dict(header.settings),
    }


def _served(name: str, description: dict[str, Any], source: str | None) -> ServedModel:
    return ServedModel(id=PREFIX + name, adapter={**description, "model": PREFIX + name}, source=source)


def _parse(entry: str) -> tuple[str, str]:
    """(name, path) of an entry. Raises UsageError."""
    name, _, source = entry.partition("=")
    if not _NAME.fullmatch(name) or not source:
        raise UsageError(
            f"serve.adapters: '{entry}' is not NAME=PATH with a name of letters, digits, '.', '_' and '-'; for example "
            f"cat=cat.safetensors"
        )
    return name, source
