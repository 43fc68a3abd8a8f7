"""Starting the endpoint on the cluster that this process is connected to, waiting until it serves, and ending it."""

from __future__ import annotations

import logging
import re
import time
import uuid

import httpx
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from realcustom.errors import UsageError
from realcustom.inference.address import check_port
from realcustom.inference.app import APP_NAME, LINES, ServeArguments, application
from realcustom.inference.backend import State
from realcustom.inference.models import ServedModel
from realcustom.inference.naming import MakeNaming
from realcustom.inference.room import lacking
from realcustom.inference.settings import ServeSettings

logger = logging.getLogger(__name__)
# in a trace of Serve's; these modules define no exceptions but mistakes
_MISTAKE = re.compile(r"realcustom\.(?:errors|store|config)\.\w+: (.+)|UsageError: (.+)")
_LOOK_SECONDS = 5.0  # between two looks at what the cluster lacks, which ask it for all actors
_SAY_LOADING_SECONDS = 20.0
_SAY_LACKING_SECONDS = 60.0


def start(
    settings: ServeSettings,
    base: str,
    adapter: str | None,
    image_encoder: str | None = None,
    naming: MakeNaming | None = None,
    models: tuple[ServedModel, ...] | None = None,
) -> str:
    """Run the endpoint on the Ray cluster this process is connected to, and wait until it serves requests.

    Args:
        settings: address, resources and limits.
        base: diffusers folder or hub id.
        adapter: adapter checkpoint, path or storage URI; None = plain text-to-image.
        image_encoder: overrides the image encoder that the adapter names.
        naming: makes what finds the word of an edit that has none; None = an edit must have it.
        models: as `find_models` found them already; None = they are found here, which reads the adapters.
    Returns:
        The endpoint's address, `http://host:port`. It runs until `stop`, or until the cluster ends.
    Raises:
        UsageError: the address is taken or Serve runs with another, the key's variable is not set, the models are
            wrong, or were not loaded within `settings.load_timeout_seconds`.
        RuntimeError: Ray Serve could not start a replica, or a bug made loading fail.
    """
    instance = uuid.uuid4().hex
    given = ServeArguments(base=base, adapter=adapter, image_encoder=image_encoder, serve=settings)
    app = application(given, naming, instance, models)
    running = serve.status()
    if running.proxies:
        _check_address(settings)
    else:
        check_port(settings.host, settings.port)
    if APP_NAME in running.applications:  # replaced, not updated: two replicas may not fit
        serve.delete(APP_NAME)
    logging.getLogger("ray.serve").setLevel(LINES.log_level)
    serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=LINES)
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"http://{host}:{settings.port}"
    try:
        # not serve.run, which waits without limit for a replica that the cluster has no room for
        serve.run_many([serve.RunTarget(app, name=APP_NAME)], wait_for_applications_running=False)
        _wait_until_ready(url, instance, settings)
    except BaseException:
        stop()
        raise
    return url


def stop() -> None:
    """End the endpoint, and Serve if nothing else runs on it. Does nothing if no endpoint runs.

    Requests that run have `drain_seconds` to end.
    """
    applications = serve.status().applications.keys()
    if APP_NAME in applications:
        serve.delete(APP_NAME, _blocking=False)  # blocking, it waits for a minute at most
        while APP_NAME in serve.status().applications:
            time.sleep(0.1)
    if not applications - {APP_NAME}:
        serve.shutdown()


def _check_address(settings: ServeSettings) -> None:
    """Raise UsageError if Serve listens elsewhere on this cluster: its address cannot be changed while it runs."""
    client = _get_global_client()
    options = None if client is None else client.http_config
    if options is not None and (options.host, options.port) != (settings.host, settings.port):
        raise UsageError(
            f"Serve runs on this cluster with the address {options.host} port {options.port}, not {settings.host} port "
            f"{settings.port}: use that one (--set serve.host={options.host} --set serve.port={options.port}), or stop it "
            f"there first"
        )


def _wait_until_ready(url: str, instance: str, settings: ServeSettings) -> None:
    began = time.monotonic()
    next_look = began + _LOOK_SECONDS
    while time.monotonic() - began < settings.load_timeout_seconds:
        status = serve.status().applications[APP_NAME]
        _check_failures(status)
        try:
            answer = httpx.get(f"{url}/readyz", timeout=10.0, trust_env=False).json()  # of this machine: by no proxy
        except (httpx.TransportError, ValueError):  # ValueError: no JSON, because the proxy has no routes yet
            answer = None
        if isinstance(answer, dict) and answer.get("instance") == instance and answer["status"] == State.READY.value:
            return
        if (now := time.monotonic()) > next_look:
            pause = _LOOK_SECONDS
            if line := lacking(settings):
                logger.warning("%s; waiting for room", line)
                pause = _SAY_LACKING_SECONDS
            elif now - began > _SAY_LOADING_SECONDS:
                logger.info("the endpoint's processes are starting: %.0f s so far", now - began)
                pause = _SAY_LOADING_SECONDS
            next_look = now + pause
        time.sleep(0.2)
    reason = lacking(settings) or "the models may be large, or far away"
    raise UsageError(f"not ready within {settings.load_timeout_seconds:g} s (load_timeout_seconds); {reason}")


def _check_failures(status: ApplicationStatusOverview) -> None:
    """Raise what made a process's constructor fail: UsageError for a mistake, which the message says fully."""
    message = "\n".join([*(one.message for one in status.deployments.values()), status.message])
    if found := list(_MISTAKE.finditer(message)):
        sentence = next(group for group in found[-1].groups() if group)  # the last one: a trace begins with the cause
        raise UsageError(sentence.strip())
    failed = status.status == ApplicationStatus.DEPLOY_FAILED
    if failed or "Traceback" in message:
        raise RuntimeError(f"Ray Serve could not start the endpoint: {message}")
