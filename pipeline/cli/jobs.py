"""The verbs `realcustom jobs ...`."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from realcustom.pipeline.cli.options import add_verb
from realcustom.pipeline.cli.submit import JobsAddress, follow_to_end

app = typer.Typer(help="The jobs of a Ray cluster, `realcustom submit`'s and others.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a job, as `realcustom jobs list` says it.")]


def list_jobs(address: JobsAddress = None) -> None:
    """One line for each job: name, status, when it began, how long it ran, labels, what it runs."""
    from realcustom.pipeline.jobs_api import Job, JobsApi

    def line(job: Job) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started)) if job.started else "-"
        ran = f"{(job.ended or time.time()) - job.started:.0f} s" if job.started else "-"
        labels = ",".join(f"{name}={value}" for name, value in sorted(job.labels.items()))
        return f"{job.name:<32} {job.status:<10} {began:<20} {ran:>8}  {labels or '-':<16} {job.entrypoint[:120]}"

    for job in JobsApi(address).all():
        print(line(job))


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job has ended.")] = False,
    address: JobsAddress = None,
) -> None:
    """What a job has written."""
    from realcustom.pipeline.jobs_api import JobsApi

    api = JobsApi(address)
    if follow:
        raise typer.Exit(follow_to_end(api.url, name))
    sys.stdout.write(api.logs(name))


def stop(name: Name, address: JobsAddress = None) -> None:
    """Ask a job to end: it finishes its step or unit, and the same command goes on later."""
    from realcustom.pipeline.jobs_api import JobsApi

    running = JobsApi(address).stop(name)
    print(f"job {name} is asked to end" if running else f"job {name} had ended")


def wait(name: Name, address: JobsAddress = None) -> None:
    """Wait for a job's end, and exit with its status; nothing is shown."""
    from realcustom.pipeline.following import LOST, follow
    from realcustom.pipeline.jobs_api import JobsApi

    job = follow(JobsApi(address), name, write=None)
    print(f"job {name} {job.status.lower()}")
    if job.status == LOST:
        sys.stderr.write(f"{job.message}\n")
    raise typer.Exit(job.exit_status())


@app.callback(invoke_without_command=True)
def _before_the_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:  # the help is the message
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(2)


add_verb(app, list_jobs, "realcustom jobs list --address http://head:8265", name="list")
add_verb(app, logs, "realcustom jobs logs train-3f2a1c --follow")
add_verb(app, stop, "realcustom jobs stop train-3f2a1c")
add_verb(app, wait, "realcustom jobs wait train-3f2a1c")
