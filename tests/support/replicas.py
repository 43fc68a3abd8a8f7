"""Replicas of the endpoint on the Ray that this process has started; another one on the same machine has its own."""

from __future__ import annotations

import contextlib

import psutil
from ray import serve

from realcustom.inference.app import APP_NAME, ENGINE


def replicas(deployment: str) -> list[psutil.Process]:
    """The processes of a deployment's replicas."""
    title, found = f"ServeReplica:{APP_NAME}:{deployment}", []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if title in " ".join(one.cmdline()):
                found.append(one)
    return found


def running_engines() -> int:
    """Engines that have loaded their models, as Serve sees it."""
    states = serve.status().applications[APP_NAME].deployments[ENGINE].replica_states
    return int(states.get("RUNNING", 0))
