"""The endpoint in the foreground: started, announced, and stopped by a signal."""

from __future__ import annotations

import logging
import threading
from functools import partial

from realcustom.inference.adapters import find_models
from realcustom.inference.address import check_port
from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.cluster import connected, is_embedded
from realcustom.pipeline.supervising import raise_at_signals, supervise

CLEANUP_SECONDS = 20.0  # beside the running requests: Serve ends its replicas, an embedded Ray its processes

logger = logging.getLogger(__name__)


def serve_until_interrupted(
    settings: ServeSettings, base: str, adapter: str | None, image_encoder: str | None, address: str | None
) -> int:
    """Run the endpoint until SIGINT, SIGTERM or SIGHUP, then let running requests end, and stop it; returns the exit status.

    It runs in a process of its own, so that none of Ray's stays, whatever ends it.
    """
    serve = partial(_serve, settings, base, adapter, image_encoder, address)
    return supervise(serve, settings.drain_seconds + CLEANUP_SECONDS)


def _serve(
    settings: ServeSettings, base: str, adapter: str | None, image_encoder: str | None, address: str | None
) -> None:
    if is_embedded(address):  # on an existing cluster Serve may listen already
        check_port(settings.host, settings.port)
    models = find_models(base, adapter, settings.adapters)  # a wrong one is said before Ray starts
    logger.info("starting Ray and the models ...")
    with connected(address):
        raise_at_signals()
        from realcustom.inference.starting import start, stop
        from realcustom.pipeline.naming import Naming

        url = start(settings, base, adapter, image_encoder, partial(Naming, settings.detector), models)
        try:
            print(announcement(url, settings), flush=True)
            threading.Event().wait()
        finally:
            stop()


def announcement(url: str, settings: ServeSettings) -> str:
    """The endpoint's URL, and an example request."""
    shown = f"${settings.api_key_variable}" if settings.api_key_variable else "$KEY" if settings.keys_file else ""
    key = f' -H "Authorization: Bearer {shown}"' if shown else ""
    return (
        f"ready at {url} (Ctrl-C stops it): a page that draws; for programs, for example:\n"
        f"  curl -s {url}/v1/images/generations{key} -H 'Content-Type: application/json' -d @- <<END\n"
        '  {"prompt": "a star at the top on snow", "seed": 1,\n'
        '   "subjects": [{"image": "$(base64 < PHOTO | tr -d \'\\n\')", "word": "star"}]}\n'
        "END"
    )
