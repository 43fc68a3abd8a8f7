"""Bearer keys: who may ask, how often, how much at once, and how large. Keys are held as hashes alone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from realcustom import config
from realcustom.errors import UsageError
from realcustom.inference.settings import ServeSettings

SIZE_LIMITS = ("max_pixels", "max_n", "max_steps", "max_subjects", "max_body_bytes", "deadline_seconds")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SHORTEST = 16  # characters of a key in a file


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """What one key may do; None = as the server's settings say, or no limit."""

    requests_per_minute: float | None = None  # averaged; a minute's worth may come at once
    max_running: int | None = None  # requests at the same time, those that wait included
    max_pixels: int | None = None  # the rest: as the setting of the same name, where it is smaller
    max_n: int | None = None
    max_steps: int | None = None
    max_subjects: int | None = None
    max_body_bytes: int | None = None
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be more than 0, got {value}")

    def narrow(self, settings: ServeSettings) -> ServeSettings:
        """The server's settings with this key's smaller limits."""
        given = {name: getattr(self, name) for name in SIZE_LIMITS if getattr(self, name) is not None}
        smaller = {name: value for name, value in given.items() if value < getattr(settings, name)}
        return dataclasses.replace(settings, **smaller)


@dataclass(frozen=True, kw_only=True)
class Key:
    """A bearer key."""

    name: str  # in logs
    digest: bytes  # SHA-256 of the key
    limits: KeyLimits = KeyLimits()


def digest_of(key: str) -> bytes:
    """What is kept of a key: the whole cluster can read Serve's data about a deployment."""
    return hashlib.sha256(key.encode()).digest()


def find_keys(settings: ServeSettings) -> tuple[Key, ...]:
    """The keys of the variable and the file that the settings name; none = no key is required.

    Raises UsageError where one cannot be used.
    """
    keys: list[Key] = []
    if settings.api_key_variable is not None:
        key = os.environ.get(settings.api_key_variable, "").strip()
        if not key:
            raise UsageError(f"api_key_variable: the environment variable {settings.api_key_variable} is not set")
        keys.append(Key(name="default", digest=digest_of(key)))
    if settings.keys_file is not None:
        keys += read_keys(Path(settings.keys_file))
    for what, values in (("name", [key.name for key in keys]), ("key", [key.digest for key in keys])):
        if len(set(values)) < len(values):
            raise UsageError(f"keys_file: two keys have the same {what}; give each its own")
    return tuple(keys)


def read_keys(path: Path) -> list[Key]:
    """The keys of a YAML file: names, and for each its `key` (or its SHA-256 as `sha256`) and its limits.

    Raises UsageError for a file that others can read, or that cannot be used; no key is ever shown.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(
                    f"keys_file: others can use {path} (mode {stat.S_IMODE(mode):03o}); make it yours alone: chmod 600 {path}"
                )
            data = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"keys_file: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError):  # their messages show the text, which holds keys
        raise UsageError(f"keys_file: {path} is not valid YAML; docs/serving.md has an example") from None
    if not isinstance(data, dict) or not data:
        raise UsageError(f"keys_file: {path} holds no keys; docs/serving.md has an example")
    return [_read_key(str(name), entry) for name, entry in data.items()]


def _read_key(name: str, entry: Any) -> Key:
    if not _NAME.fullmatch(name):
        raise UsageError("keys_file: a key's name is 1 to 64 letters, digits, '.', '_' and '-'")
    if not isinstance(entry, dict):
        raise UsageError(f"keys_file: {name} has no entries; give it a key")
    limits = {field: value for field, value in entry.items() if field not in ("key", "sha256")}
    return Key(name=name, digest=_digest(name, entry), limits=config.build(KeyLimits, limits, name))


def _digest(name: str, entry: Mapping[str, Any]) -> bytes:
    given: Sequence[str] = [field for field in ("key", "sha256") if field in entry]
    if len(given) != 1:
        raise UsageError(f"keys_file: {name} has {len(given)} of key and sha256; give one")
    value = entry[given[0]]
    if given[0] == "sha256":
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise UsageError(f"keys_file: sha256 of {name} is 64 hexadecimal digits")
        return bytes.fromhex(value)
    if not isinstance(value, str) or len(value) < SHORTEST:
        raise UsageError(f"keys_file: the key of {name} is a text of at least {SHORTEST} characters")
    return digest_of(value)
