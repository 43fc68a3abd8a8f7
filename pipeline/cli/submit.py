"""The verb `realcustom submit`."""

from __future__ import annotations

import select
import sys
from pathlib import Path
from typing import Annotated

import typer

from realcustom.config import did_you_mean
from realcustom.errors import UsageError
from realcustom.pipeline.cli import interrupt

ASK_SECONDS = 15.0  # for an answer, before Ctrl-C ends the command whatever it does

JobsAddress = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="Dashboard, http://HOST:8265; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS."
    ),
]


def submit(
    context: typer.Context,
    verb: Annotated[list[str], typer.Argument(metavar="-- VERB ...", help="What is run there, with its options.")],
    address: JobsAddress = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the job; else made from the verb.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow the job to its end, or leave at once.")] = True,
    package: Annotated[
        bool | None,
        typer.Option(
            "--package/--no-package",
            help="Take along what git tracks (unless there is an --image), or use the cluster's own code.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Container image with the code, in place of a package; nodes need podman."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder on a store for a package over the limit.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Variable of the job; may be repeated.")] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K=REF", help="Variable by where each node has it: env:VARIABLE or file:/PATH; repeatable."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Shown by `jobs list`; may be repeated.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="Of the job's own process, not of its workers.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="Likewise.")] = None,
    memory: Annotated[float | None, typer.Option(min=0, metavar="GIB", help="Likewise.")] = None,
    retries: Annotated[int, typer.Option(min=0, metavar="N", help="Further tries of a job that failed.")] = 0,
    wait_for_room: Annotated[
        bool, typer.Option("--wait-for-room", help="Submit although no node has what is asked for.")
    ] = False,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="Interpreter on the cluster; else the one that runs Ray there.")
    ] = None,
    estimate: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Try N units there, keep nothing, say what all would take; --hourly-price: the verb's.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job as YAML and stop.")] = False,
) -> None:
    """Run a verb as a job of a Ray cluster: submit [OPTIONS] -- VERB ..."""
    from realcustom.pipeline.jobs_api import JobsApi
    from realcustom.pipeline.packing import find_package
    from realcustom.pipeline.submission import (
        JobRequest,
        as_estimate,
        check_output,
        describe,
        make_name,
        parse_pairs,
    )
    from realcustom.pipeline.submission import submit as send

    words = _of_verb(verb, context)
    before = verb[: len(verb) - len(words)]  # `--log-level debug`
    check_output(words)
    if package and image is not None:
        raise UsageError("--package: Ray takes none along into an --image, which has the code; give one of the two")
    request = JobRequest(
        arguments=[*before, *(words if estimate is None else as_estimate(words, estimate))],
        name=name or make_name(words),
        package=find_package(Path.cwd()) if package is not False and image is None else None,
        storage=storage,
        environment=parse_pairs(env or (), "--env"),
        labels=parse_pairs(label or (), "--label"),
        cpus=cpus,
        gpus=gpus,
        memory_gib=memory,
        retries=retries,
        python=python,
        image=image,
        secrets=parse_pairs(secret or (), "--secret"),
    )
    api = JobsApi(address)
    if dry_run:
        sys.stdout.write(describe(request, api.url))
        return
    send(request, api, wait_for_room=wait_for_room)
    sys.stderr.write(f"job {request.name} at {api.url}\n")
    if not wait:
        print(request.name)
        return
    raise typer.Exit(follow_to_end(api.url, request.name))


def follow_to_end(address: str, name: str) -> int:
    """Show a job's output until it has ended; returns its exit status. Ctrl-C asks whether the job is to end too."""
    from realcustom.pipeline.following import follow
    from realcustom.pipeline.jobs_api import JobsApi

    api = JobsApi(address)
    try:
        job = follow(api, name, _show)
    except KeyboardInterrupt:
        if _asked_to_stop(name):
            api.stop(name)
            sys.stderr.write(f"job {name} is asked to end\n")
        else:
            sys.stderr.write(
                f"job {name} goes on: `realcustom jobs logs {name} --follow` shows it, `realcustom jobs stop {name}` ends it\n"
            )
        return interrupt.STATUS
    status = job.exit_status()
    said = f": {job.message}" if job.exit_code is None and job.message and status else ""
    sys.stderr.write(f"job {name} {job.status.lower()}, exit status {status}{said}\n")
    return status


def _of_verb(arguments: list[str], context: typer.Context) -> list[str]:
    """The verb and its words, without the options of all verbs that stand before it; none where only those are given.

    Raises UsageError for a verb that there is not, before a cluster starts a job for it.
    """
    assert context.parent is not None
    program = context.parent.command
    words: list[str] = program.make_parser(context.parent).parse_args(list(arguments))[1]
    names = list(getattr(program, "commands", ()))
    if words and words[0] not in names:
        guess = did_you_mean(words[0], names, cutoff=0.6)
        raise UsageError(f"there is no verb '{words[0]}'{guess}There are {', '.join(names)}")
    return words


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _asked_to_stop(name: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"\nstop the job {name} as well? [y/N] ")
    sys.stderr.flush()
    try:
        ready, _, _ = select.select([sys.stdin], [], [], ASK_SECONDS)
        return bool(ready) and sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


VERBS = {
    submit: (
        "realcustom submit --address http://head:8265 -- preprocess score --input s3://bucket/ingest@0123456789ab "
        "--output s3://bucket",
        "realcustom submit --detach --env AWS_DEFAULT_REGION=eu-west-1 --retries 2 -- train "
        "--input s3://bucket/encode@0123456789ab --output s3://bucket/train",
        "realcustom submit --secret WANDB_API_KEY=file:/run/secrets/wandb --estimate 4 -- preprocess score "
        "--input s3://bucket/ingest@0123456789ab --output s3://bucket --hourly-price 0.35",
        "realcustom submit --dry-run -- train --input s3://bucket/encode@0123456789ab --output s3://bucket/train",
    )
}
