"""Options that the verbs share, and what is checked of their values before anything heavy is imported or started."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from realcustom.pipeline.configure import resolve, to_yaml
from realcustom.pipeline.recipes import RunSettings

Recipe = Annotated[str, typer.Option("--recipe", metavar="NAME", help="Complete settings to begin with.")]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", metavar="FILE", help="YAML settings laid over the recipe; may be repeated."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="One setting, laid over recipe and files; may be repeated."),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved settings as YAML and stop.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="Ray cluster to run on; else RAY_ADDRESS, else one of its own."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="FOLDER|HUB_ID", help="Diffusion model in diffusers' format, instead of the recipe's."
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="FILE", help="Adapter checkpoint, path or URI, instead of the recipe's."),
]
ImageEncoder = Annotated[
    str | None,
    typer.Option("--image-encoder", metavar="FOLDER|HUB_ID", help="Instead of the one that the adapter names."),
]

DEFAULT_RECIPE = "sprites"


def example(*commands: str) -> str:
    """Commands as the closing lines of a verb's help, not wrapped."""
    return "\b\nFor example:\n" + "\n".join(f"  {command}" for command in commands)


def settings_of(
    recipe: str,
    files: Sequence[Path] | None,
    sets: Sequence[str] | None,
    print_config: bool,
    verb: str,
    used: Sequence[str],
    over: Mapping[str, Any] | None = None,
) -> RunSettings:
    """The run's settings; with `print_config` they are printed and the command ends.

    Args:
        used: the sections that `verb` reads; an assignment to another one warns that it has no effect.
        over: nested settings that options of `verb` stand for.
    """
    settings = resolve(recipe, files or (), sets or (), over)
    if print_config:
        sys.stdout.write(to_yaml(settings))
        raise typer.Exit
    for text in sets or ():
        name = text.partition("=")[0].strip()
        if not any(name == section or name.startswith(section + ".") for section in used):
            warn(f"--set {name} has no effect in '{verb}', which reads {', '.join(used)}")
    return settings


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)
