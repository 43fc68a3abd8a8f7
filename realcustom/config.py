"""Settings are frozen dataclasses; this file builds them strictly from plain data. Imports neither torch nor ray.

One rule of precedence: recipe < `--config FILE` < `--set a.b=c`. A mistyped key or value is a `SettingError`
that names the nearest valid one, raised before anything is started. A settings class lists renamed fields in
`RENAMED: ClassVar[Mapping[str, str]]`, from the old name to the new one, and the values of a field that have another
name now in `RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]]`: an old name is refused and the message gives
the new one. `with_new_names` translates what a program wrote when the old names were valid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from realcustom.errors import UsageError

T = TypeVar("T")


class SettingError(UsageError):
    """A setting's name or value does not exist; the message names the setting and what is allowed."""


class Conflict(SettingError):
    """Settings of one section, each valid by itself, that contradict each other or a range.

    `where` is the section's dotted name, empty for the whole.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain data (as YAML gives it), checking every key and type.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, enums, tuples, optional ones, or dataclasses.
        data: mapping of field names; absent fields keep their defaults.
        where: dotted prefix for messages.
    Raises:
        SettingError: an unknown key (the nearest valid one is named), a missing one, or a value of the wrong type; a
            Conflict for what the dataclass itself refuses.
    """
    if not isinstance(data, Mapping):
        raise SettingError(f"{where or cls.__name__}: expected a mapping of settings, got {data!r}")
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise SettingError(_unknown(cls, str(key), hints, where))
        if value is not (new := _new_value(cls, str(key), value)):
            raise SettingError(f"{name}: {value!r} is called {new!r} now")
        values[key] = _convert(hints[key], value, name)
    missing = [name for name in _required(cls) if name not in values]
    if missing:
        raise SettingError(f"{where or cls.__name__}: {', '.join(missing)} is missing")
    try:
        return cls(**values)
    except UsageError as error:  # a dataclass's own __post_init__ check
        raise Conflict(f"{where}: {error}" if where else str(error), where) from error


def with_new_names(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of the settings class `cls` with each old name of a field or of a value replaced by the new one."""
    hints, renamed = _hints(cls), getattr(cls, "RENAMED", {})
    if hasattr(cls, "of_older"):  # a change that names alone cannot say
        data = cls.of_older(data)
    translated: dict[str, Any] = {}
    for old, value in data.items():
        key = renamed.get(old, old)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(hints.get(key)):
            translated[key] = with_new_names(hints[key], value)
        else:
            translated[key] = _new_value(cls, key, value)
    return translated


def override(settings: T, data: Mapping[str, Any]) -> T:
    """`settings` with the (nested, partial) plain `data` over it; as strict as `build`."""
    return build(type(settings), merge(to_dict(settings), data))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged; `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def to_dict(settings: Any) -> Any:
    """A settings dataclass as plain data (JSON- and YAML-safe): enums by value, tuples as lists."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, enum.Enum):
        return settings.value
    if isinstance(settings, (tuple, list)):
        return [to_dict(item) for item in settings]
    return settings


def parse_assignment(text: str) -> dict[str, Any]:
    """`"a.b=c"` -> `{"a": {"b": c}}`; the value is read as YAML (`3`, `true`, `[1, 2]`, `text`)."""
    name, sign, value = text.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not sign or not all(parts):
        raise SettingError(f"--set wants NAME=VALUE with a dotted name, got {text!r} (for example --set train.lr=1e-4)")
    try:
        parsed: Any = yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError as error:
        raise SettingError(f"--set {name}: {value!r} is not a valid value ({error.__class__.__name__})") from error
    nested: dict[str, Any] = {parts[-1]: parsed}
    for part in reversed(parts[:-1]):
        nested = {part: nested}
    return nested


def load_file(path: str | Path) -> dict[str, Any]:
    """A YAML settings file, on a disk or an object store, as nested plain data."""
    try:
        data = yaml.safe_load(_read(path).decode("utf-8"))
    except OSError as error:
        raise SettingError(f"the settings file {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingError(f"{path}: expected a mapping of settings at the top level, got {type(data).__name__}")
    return data


def _read(path: str | Path) -> bytes:
    missing = SettingError(f"no settings file at {path}")
    if "://" in str(path):
        # Here: it takes time, and a wrong name is to be said at once.
        from realcustom.store import Store, check_readable

        check_readable(str(path))
        try:
            return Store().read(str(path))
        except FileNotFoundError:
            raise missing from None
    if not Path(path).is_file():
        raise missing
    return Path(path).read_bytes()


def _hints(cls: Any) -> dict[str, Any]:
    """Types of the dataclass's fields; other attributes (a ClassVar) are left out."""
    types_of_all = typing.get_type_hints(cls)
    return {field.name: types_of_all[field.name] for field in dataclasses.fields(cls)}


def _new_value(cls: Any, key: str, value: Any) -> Any:
    """The value's name now; the value itself where it was not renamed."""
    renamed: Mapping[str, str] = getattr(cls, "RENAMED_VALUES", {}).get(key, {})
    return renamed.get(value, value) if isinstance(value, str) else value


def _required(cls: Any) -> list[str]:
    """Fields that have no default."""
    none = dataclasses.MISSING
    return [field.name for field in dataclasses.fields(cls) if field.default is none and field.default_factory is none]


def _unknown(cls: Any, key: str, hints: Mapping[str, Any], where: str) -> str:
    prefix = f"{where}." if where else ""
    renamed: Mapping[str, str] = getattr(cls, "RENAMED", {})
    if key in renamed:
        return f"setting '{prefix}{key}' is called '{prefix}{renamed[key]}' now"
    return f"unknown setting '{prefix}{key}'{_nearest(key, hints, where)}"


def _nearest(key: str, names: Mapping[str, Any], where: str) -> str:
    prefix = f"{where}." if where else ""
    inner = next((name for name, hint in names.items() if dataclasses.is_dataclass(hint) and key in _hints(hint)), None)
    if inner is not None:  # a name without its section
        return f"; did you mean '{prefix}{inner}.{key}'?"
    close = difflib.get_close_matches(key, list(names), n=1, cutoff=0.4)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    return f"; there are {', '.join(prefix + name for name in names)}"


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, name)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, name)  # type: ignore[arg-type]
    if _is_enum(hint):
        return _convert_enum(hint, value, name)
    if origin is tuple:
        return _convert_tuple(args, value, name)
    return _convert_scalar(hint, value, name)


def _convert_union(choices: tuple[Any, ...], value: Any, name: str) -> Any:
    """The value as the first type that accepts it; if none does, the error names all that are allowed."""
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _convert(choices[0], value, name)
    for choice in choices:
        with contextlib.suppress(SettingError):
            return _convert(choice, value, name)
    names = [str(member.value) for choice in choices if _is_enum(choice) for member in choice]
    kinds = [_kind(choice) for choice in choices if not _is_enum(choice)]
    raise _not_allowed(name, value, names, kinds)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _kind(hint: Any) -> str:
    """A type in words: `int`, `a list of int`."""
    if typing.get_origin(hint) is tuple:
        return f"a list of {_kind(typing.get_args(hint)[0])}"
    return str(getattr(hint, "__name__", hint))


def did_you_mean(text: str, names: Iterable[str], cutoff: float = 0.4) -> str:
    """What stands between a wrong name and the sentence that lists `names`: the question after the nearest of them, or a full stop
    where none is near (`cutoff` as difflib's); with a space at its end."""
    close = difflib.get_close_matches(text, list(names), n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'? " if close else ". "


def _not_allowed(name: str, value: Any, names: Sequence[str], kinds: Sequence[str] = ()) -> SettingError:
    """An error that names the nearest of `names`, then all of them and the other kinds of value that are allowed."""
    guess = did_you_mean(str(value), names)
    allowed = [*names, *(f"or {kind}" for kind in kinds)]
    return SettingError(f"{name}: {value!r} is not allowed{guess}It is one of {', '.join(allowed)}")


def _convert_enum(hint: type[enum.Enum], value: Any, name: str) -> enum.Enum:
    # YAML reads the bare words on/off as booleans
    plain = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    try:
        return hint(str(plain))
    except ValueError:
        raise _not_allowed(name, value, [str(member.value) for member in hint]) from None


def _convert_tuple(args: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise SettingError(f"{name}: expected a list, got {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise SettingError(f"{name}: expected {len(args)} values, got {value!r}")
    return tuple(_convert(arg, item, f"{name}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _convert_scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is Any:
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint is float and (number or isinstance(value, str)):
        try:
            return float(value)  # YAML reads 1e-5 as text
        except ValueError:
            pass
    if hint is str and isinstance(value, str):
        return value
    raise SettingError(f"{name}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
