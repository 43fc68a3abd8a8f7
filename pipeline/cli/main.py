"""The command line `realcustom`. Nothing heavy is imported until a verb has checked its arguments."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from realcustom import log
from realcustom.pipeline.cli import (
    cluster,
    evaluate,
    export,
    generate,
    inspect,
    interrupt,
    jobs,
    preprocess,
    quickstart,
    rehearse,
    serve,
    streams,
    submit,
    train,
)
from realcustom.pipeline.cli.options import add_verb
from realcustom.pipeline.cli.status import MISTAKE, status_of

app = typer.Typer(
    name="realcustom",
    help="Subject-driven text-to-image customisation: data, training, images, serving.",
    epilog="A first run: realcustom quickstart. Settings: recipe < --config FILE < --set a.b=c.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a bug (its trace on stderr), 2 the user's mistake (one line
    on stderr), 3 a stage kept nothing for the next one (one line), 130 interrupted.
    """
    streams.open_closed()
    os.environ.setdefault("TQDM_DISABLE", "1")  # no bars of libraries: a command's progress is log lines
    # libgomp's threads wait in a loop for the next operation, by default so long that on a busy machine they take each
    # other's cores: a third of the time there with this, and the same where the cores are free. Workers inherit it
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    interrupt.watch()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. What is not a user's mistake is raised, and keeps its trace."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their warnings are about our choices; workers inherit this
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    return status_of(lambda: app(args=None if arguments is None else list(arguments), standalone_mode=False))


def _say_version(asked: bool) -> None:
    if asked:
        print(f"realcustom {importlib.metadata.version('realcustom')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _before_the_verb(
    context: typer.Context,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="Least level of the lines on stderr.")
    ] = "info",
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version and stop.")
    ] = False,
) -> None:
    log.configure(log_level)
    if context.invoked_subcommand is None:  # the help is the message
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(MISTAKE)


for _module in (quickstart, train, generate, serve, export, inspect, rehearse, submit):
    for _verb, _examples in _module.VERBS.items():
        add_verb(app, _verb, *_examples)
app.add_typer(preprocess.app, name="preprocess")
app.add_typer(cluster.app, name="cluster")
app.add_typer(jobs.app, name="jobs")
app.add_typer(evaluate.app, name="evaluate")
