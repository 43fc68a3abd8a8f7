"""The endpoint in the foreground: started, announced, and stopped by a signal."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

from realcustom import log
from realcustom.inference.adapters import find_models
from realcustom.inference.address import check_port
from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.cluster import connected
from realcustom.preprocessing.caption.nouns import find_targets

MAX_NOUNS = 8  # that a message lists

logger = logging.getLogger(__name__)


def serve_until_interrupted(
    settings: ServeSettings, base: str, adapter: str | None, image_encoder: str | None, address: str | None
) -> None:
    """Run the endpoint until SIGINT or SIGTERM, then stop it. Raises KeyboardInterrupt at the end."""
    if not (address or os.environ.get("RAY_ADDRESS")):  # on an existing cluster Serve may listen already
        check_port(settings.host, settings.port)
    models = find_models(base, adapter, settings.adapters)  # a wrong one is said before Ray starts
    signal.signal(signal.SIGTERM, _interrupt)
    logger.info("starting Ray and the models ...")
    with connected(address):
        from realcustom.inference.starting import start, stop

        with log.each_minute(logger, lambda: _lacking(settings)):
            url = start(settings, base, adapter, image_encoder, nouns, models)
        try:
            print(announcement(url, settings), flush=True)
            threading.Event().wait()
        finally:
            stop()


def _lacking(settings: ServeSettings) -> str | None:
    """A line if no node of the cluster has what a replica takes: Ray waits for one silently, as it may be added."""
    import ray

    needed = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= number for name, number in needed.items()) for node in nodes):
        return None
    words = " and ".join(f"{number:g} {name}" for name, number in needed.items() if number)
    return f"no node of the cluster has {words}, as serve.num_cpus and serve.num_gpus ask for; waiting for one"


def nouns(prompt: str) -> list[str]:
    """The words of a prompt that can name a subject, by the rule that finds target words in captions."""
    return [target.word for target in find_targets(prompt, (), MAX_NOUNS)]


def announcement(url: str, settings: ServeSettings) -> str:
    """The endpoint's URL, and an example request."""
    shown = f"${settings.api_key_variable}" if settings.api_key_variable else "$KEY" if settings.keys_file else ""
    key = f' -H "Authorization: Bearer {shown}"' if shown else ""
    return (
        f"ready at {url} (Ctrl-C stops it); for example:\n"
        f"  curl -s {url}/v1/images/generations{key} -H 'Content-Type: application/json' -d @- <<END\n"
        '  {"prompt": "a star on grass", "seed": 1,\n'
        '   "subjects": [{"image": "$(base64 < PHOTO | tr -d \'\\n\')", "word": "star"}]}\n'
        "END"
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
