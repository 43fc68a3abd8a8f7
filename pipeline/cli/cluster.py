"""The verbs `realcustom cluster ...`."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from realcustom.pipeline.cli.options import add_verb
from realcustom.pipeline.local_cluster import BUCKET, LocalCluster, local_cluster

app = typer.Typer(help="A Ray cluster on this machine, for trying what is meant for a real one.", rich_markup_mode=None)


def local(
    nodes: Annotated[int, typer.Option(min=1, metavar="N", help="Ray nodes, the head included.")] = 2,
    cpus: Annotated[int, typer.Option(min=1, metavar="C", help="Logical CPUs of each node.")] = 4,
    s3: Annotated[bool, typer.Option("--s3", help=f"With an S3 server and a bucket {BUCKET}, in memory.")] = False,
    object_store_mb: Annotated[int, typer.Option(min=80, metavar="MB", help="Shared memory of each node.")] = 200,
) -> None:
    """Start Ray nodes (and a store) on free ports, say how to join, and end them all with this command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    with local_cluster(nodes, cpus, s3=s3, object_store_mb=object_store_mb) as cluster:
        sys.stdout.write(joining(cluster))
        sys.stdout.flush()
        threading.Event().wait()


def joining(cluster: LocalCluster) -> str:
    """How another terminal uses a cluster."""
    lines = [
        f"# {len(cluster.nodes)} nodes; Ctrl-C ends them. In another terminal:",
        *(f"export {name}={shlex.quote(value)}" for name, value in cluster.environment().items()),
        f"# dashboard: {cluster.api}; metrics: {' '.join(node.metrics for node in cluster.nodes)}",
        *([f"# store: s3://{BUCKET}, in memory: it is gone with this command"] if cluster.store else []),
        "ready",
    ]
    return "\n".join(lines) + "\n"


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@app.callback(invoke_without_command=True)
def _before_the_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:  # the help is the message
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(2)


add_verb(app, local, "realcustom cluster local --nodes 2 --cpus 4 --s3")
