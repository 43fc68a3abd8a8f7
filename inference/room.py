"""What a process of the endpoint waits for that has no place on the cluster: Ray waits for it silently, as a machine may be
added or others may end.
"""

from __future__ import annotations

import ray
from ray._private.state import actors  # its public form, ray.util.state, needs Ray's dashboard

from realcustom.inference.app import API, APP_NAME, ENGINE
from realcustom.inference.settings import ServeSettings


def lacking(settings: ServeSettings) -> str | None:
    """What the process that waits for a place asks for, and what there is; None = none waits."""
    pending = actors(actor_state_name="PENDING_CREATION").values()  # until their constructors have returned
    placeless = [str(actor["Name"]) for actor in pending if not actor["Address"]["Port"]]
    engine = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    for deployment, wanted, why in (
        (ENGINE, engine, "serve.num_cpus and serve.num_gpus ask for an engine"),
        (API, {"CPU": settings.api_cpus}, "serve.api_cpus asks for a process of the API"),
    ):
        if any(name.startswith(f"SERVE_REPLICA::{APP_NAME}#{deployment}#") for name in placeless):
            words = " and ".join(f"{number:g} {name}" for name, number in wanted.items() if number)
            return _lacking(wanted, f"{words}, as {why}")
    return None


def _lacking(wanted: dict[str, float], asks: str) -> str | None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= number for name, number in wanted.items()) for node in nodes):
        return f"no node of the cluster has {asks}"
    free = ray.available_resources()
    if all(free.get(name, 0) >= number for name, number in wanted.items()):
        return None  # it is about to get its place, or the free parts are of several nodes
    return f"the cluster has {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free, not {asks}"
