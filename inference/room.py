"""Whether the cluster has room for an engine: Ray waits for it silently, as a machine may be added or others may end."""

from __future__ import annotations

import ray

from realcustom.inference.settings import ServeSettings


def lacking(settings: ServeSettings) -> str | None:
    """What an engine asks for and what there is, where no node has that much at all, or the cluster not that much free."""
    wanted = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    words = " and ".join(f"{number:g} {name}" for name, number in wanted.items() if number)
    asks = f"{words}, as serve.num_cpus and serve.num_gpus ask for an engine"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= number for name, number in wanted.items()) for node in nodes):
        return f"no node of the cluster has {asks}"
    free = ray.available_resources()
    if all(free.get(name, 0) >= number for name, number in wanted.items()):
        return None
    return f"the cluster has {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free, not {asks}"
