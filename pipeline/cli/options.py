"""Options that the verbs share, in groups: a verb with a parameter of a group's type has the group's options.

A group is a frozen dataclass whose fields are options. `SamplingParams` is a group too: its options are made from its
fields.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import typer

from realcustom.config import merge
from realcustom.errors import UsageError
from realcustom.pipeline.configure import resolve, to_yaml
from realcustom.pipeline.recipes import RunSettings
from realcustom.sampling import KNOBS, Knob, SamplingParams

logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "sprites"
# Parameters whose option has another name, or that another option gives.
FLAGS = {"n": "--count", "num_inference_steps": "--steps", "long_prompt": "--long-prompt", "use_mask": "--no-mask"}
NOT_OPTIONS = ("seed", "return_masks")
OTHERWISE = {
    "width": "the base model's own",
    "height": "the base model's own",
    "negative_prompt": "the empty text",
    "clip_skip": "none",
}

Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to run on; else RAY_ADDRESS, else a new local one.")
]


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """Options for a run's settings."""

    recipe: Annotated[str, typer.Option(metavar="NAME", help="Complete settings to begin with.")] = DEFAULT_RECIPE
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="YAML settings that override the recipe, also s3://; may be repeated."),
    ] = None
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="One setting, which overrides recipe and files; may be repeated."),
    ] = None
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved settings as YAML and stop.")
    ] = False

    def resolve(self, verb: str, used: Sequence[str], over: Mapping[str, Any] | None = None) -> RunSettings:
        """The run's settings; with `--print-config` they are printed and the command ends.

        Args:
            used: the sections that `verb` reads; an assignment to another one warns that it has no effect.
            over: nested settings given by options of `verb`.
        """
        checked = None if self.print_config else used
        settings = resolve(self.recipe, self.config or (), self.sets or (), over, checked)
        if self.print_config:
            sys.stdout.write(to_yaml(settings))
            raise typer.Exit
        for text in self.sets or ():
            name = text.partition("=")[0].strip()
            if not any(name == section or name.startswith(section + ".") for section in used):
                logger.warning("--set %s has no effect in '%s', which reads %s", name, verb, ", ".join(used))
        return settings


Base = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|HUB_ID", help="Diffusion model in diffusers' format, instead of the recipe's."),
]


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Options for the models that encode a record."""

    base: Base = None
    image_encoder: Annotated[
        str | None, typer.Option(metavar="FOLDER|HUB_ID", help="Instead of the recipe's method.image_encoder.model.")
    ] = None

    def settings(self) -> Mapping[str, Any]:
        """The settings given by the options, nested; `encode` follows them, whatever it named of its own."""
        over: dict[str, Any] = {}
        if self.base is not None:
            over = {"base": self.base, "preprocess": {"encode": {"base": None}}}
        if self.image_encoder is not None:
            encoder = {"method": {"image_encoder": {"model": self.image_encoder}}}
            over = merge(over, {**encoder, "preprocess": {"encode": {"image_encoder": None}}})
        return over


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for the models that generate."""

    base: Base = None
    adapter: Annotated[
        str | None, typer.Option(metavar="FILE", help="Adapter checkpoint, path or URI, instead of the recipe's.")
    ] = None
    image_encoder: Annotated[
        str | None, typer.Option(metavar="FOLDER|HUB_ID", help="Instead of the one named by the adapter.")
    ] = None

    def base_and_adapter(self, settings: RunSettings) -> tuple[str, str | None]:
        """The options if given, else the recipe's two models, which belong together."""
        if self.base is not None and self.adapter is None:
            return self.base, None  # the recipe's adapter was trained for another base
        return self.base or settings.base, self.adapter or settings.adapter


def add_verb(
    app: typer.Typer, verb: Callable[..., None], *examples: str, name: str | None = None, help: str | None = None
) -> None:
    """Make `verb` a command of `app`, its groups of options spread out.

    Args:
        examples: command lines at the end of its help.
        name, help: None = the function's name and docstring.
    """
    epilog = "\b\nFor example:\n" + "\n".join(f"  {example}" for example in examples)
    app.command(name=name or verb.__name__, help=help, epilog=epilog)(_spread(verb))


def with_parameters(verb: Callable[..., None], kinds: Mapping[str, Any]) -> Callable[..., None]:
    """`verb`, which takes the parameters of these names and types by keyword: for one that is made, not written."""
    parameters = [_parameter(name, kind, inspect.Parameter.empty) for name, kind in kinds.items()]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = dict(kinds)
    return verb


def _spread(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` for typer: a parameter that is a group is replaced by the group's options."""
    hints = typing.get_type_hints(verb, include_extras=True)
    settable = SettingsOptions in hints.values()  # its --print-config needs no other option
    required: dict[str, str] = {}
    groups: dict[str, tuple[Any, list[inspect.Parameter]]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name], _parameters(hints[name])
            parameters += groups[name][1]
        else:
            parameter = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            if settable and parameter.default is inspect.Parameter.empty and hints[name] is not typer.Context:
                parameter, required[name] = _asked_for_later(parameter)
            parameters.append(parameter)

    @functools.wraps(verb)
    def call(**values: Any) -> None:
        missing = [flag for name, flag in required.items() if values[name] is None]
        if missing and not values["print_config"]:
            raise UsageError(f"Missing option '{missing[0]}'")
        for name, (group, options) in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in options})
        verb(**values)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _asked_for_later(parameter: inspect.Parameter) -> tuple[inspect.Parameter, str]:
    """A required option as one that may be left out, and its flag; the help still says that it is required."""
    kind, option = typing.get_args(parameter.annotation)
    option = copy.copy(option)
    option.help = f"{option.help}  [required]"
    flag = next(iter(option.param_decls or ()), f"--{parameter.name.replace('_', '-')}")
    return parameter.replace(annotation=Annotated[kind | None, option], default=None), flag


def _parameters(group: Any) -> list[inspect.Parameter]:
    if group is SamplingParams:
        return [_knob_option(knob) for knob in KNOBS if knob.name not in NOT_OPTIONS]
    hints = typing.get_type_hints(group, include_extras=True)
    return [_parameter(field.name, hints[field.name], field.default) for field in fields(group)]


def _knob_option(knob: Knob) -> inspect.Parameter:
    help = knob.help.removeprefix("false: ")
    otherwise = f"; else {OTHERWISE.get(knob.name, 'as in the adapter')}" if knob.optional else ""
    flags = (FLAGS[knob.name],) if knob.name in FLAGS else ()
    turned = knob.default is True  # its flag turns it off
    option = typer.Option(
        *flags,
        min=knob.ge,
        max=knob.le,
        callback=_opposite if turned else None,
        help=f"{help[0].upper()}{help[1:]}{otherwise}.",
    )
    kind: Any = knob.type | None if knob.optional else knob.type
    return _parameter(knob.name, Annotated[kind, option], False if turned else knob.default)


def _opposite(value: bool) -> bool:
    return not value


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
