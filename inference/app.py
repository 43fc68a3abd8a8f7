"""The endpoint on Ray Serve: one deployment around the service, on the Ray cluster this process is connected to."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass

import httpx
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

from realcustom import log
from realcustom.errors import UsageError
from realcustom.inference.adapters import find_models
from realcustom.inference.address import check_port
from realcustom.inference.api import build_api
from realcustom.inference.backend import State
from realcustom.inference.edits import Nouns
from realcustom.inference.engine import Engine, load_engine
from realcustom.inference.keys import Key, find_keys
from realcustom.inference.models import ServedModel
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings

APP_NAME = "realcustom"
_SPARE_REQUESTS = 64  # beyond queue and engine: health checks, and requests that are answered with 429
_PATIENCE_SECONDS = 60.0  # seconds for a proxy to learn of a running application


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The models of a replica: hub ids, folders, or (the adapter) a storage URI."""

    base: str
    models: tuple[ServedModel, ...]  # all that a request can name
    image_encoder: str | None = None  # none = the one named by the adapter


class GenerationServer:
    """One replica: a service and its HTTP interface."""

    def __init__(
        self,
        settings: ServeSettings,
        source: ModelSource,
        keys: tuple[Key, ...],
        instance: str,
        log_level: str,
        nouns: Nouns | None,
    ) -> None:
        log.configure(log_level)

        def load() -> Engine:
            own = next((model for model in source.models if model.adapter), source.models[0])
            return load_engine(settings, source.base, own, source.image_encoder)

        self._keys = keys
        self._service = Service(
            settings, load, instance, nouns, source.models
        )  # loads in the background: until then the answer is 503

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._service, self._keys, has_proxy=True)

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        self._service.check()


def start(
    settings: ServeSettings,
    base: str,
    adapter: str | None,
    image_encoder: str | None = None,
    nouns: Nouns | None = None,
) -> str:
    """Run the endpoint on the Ray cluster this process is connected to, and wait until it serves requests.

    Args:
        settings: address, resources and limits.
        base: diffusers folder or hub id.
        adapter: adapter checkpoint, path or storage URI; None = plain text-to-image.
        image_encoder: overrides the image encoder that the adapter names.
        nouns: a module's function, the words of a prompt that can name a subject; None = an edit must name its word.
    Returns:
        The endpoint's address, `http://host:port`. It runs until `stop`, or until the cluster ends.
    Raises:
        UsageError: the port is taken, the key's variable is not set, the models are wrong, or were not
            loaded within `settings.load_timeout_seconds`.
        RuntimeError: Ray Serve could not start the replica, or a bug made loading fail.
    """
    keys = find_keys(settings)
    models = find_models(base, adapter, settings.adapters)
    running = serve.status()
    if not running.proxies:
        check_port(settings.host, settings.port)
    if APP_NAME in running.applications:  # replaced, not updated: two replicas may not fit
        serve.delete(APP_NAME)
    lines = LoggingConfig(enable_access_log=False, log_level="WARNING")  # `Front` writes the access log
    logging.getLogger("ray.serve").setLevel(lines.log_level)
    serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=lines)
    instance = uuid.uuid4().hex
    source = ModelSource(base=base, models=models, image_encoder=image_encoder)
    deployment = serve.deployment(
        serve.ingress()(GenerationServer),
        name="generation",
        num_replicas=1,
        max_ongoing_requests=settings.max_queue + 1 + _SPARE_REQUESTS,
        graceful_shutdown_timeout_s=5.0,
        logging_config=lines,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    application = deployment.bind(settings, source, keys, instance, log.level(), nouns)
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"http://{host}:{settings.port}"
    try:
        # not serve.run, which waits without limit for a replica that the cluster has no room for
        serve.run_many([serve.RunTarget(application, name=APP_NAME)], wait_for_applications_running=False)
        _wait_until_ready(url, instance, settings)
    except BaseException:
        stop()
        raise
    return url


def stop() -> None:
    """End the endpoint, and Serve if nothing else runs on it. Does nothing if no endpoint runs."""
    others = serve.status().applications.keys() - {APP_NAME}
    if others:
        serve.delete(APP_NAME)
    else:
        serve.shutdown()


def _wait_until_ready(url: str, instance: str, settings: ServeSettings) -> None:
    deadline = time.monotonic() + settings.load_timeout_seconds
    silent_since: float | None = None  # the application runs, but nothing answers
    while time.monotonic() < deadline:
        application = serve.status().applications[APP_NAME]
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(f"Ray Serve could not start the endpoint: {application.message}")
        try:
            answer = httpx.get(f"{url}/readyz", timeout=10.0).json()
        except (httpx.TransportError, ValueError):  # ValueError: no JSON, because the proxy has no routes yet
            answer = None
        if isinstance(answer, dict) and answer.get("instance") == instance:
            if answer["status"] == State.READY.value:
                return
            if answer["status"] == State.FAILED.value:
                if answer["mistake"]:
                    raise UsageError(answer["message"])
                raise RuntimeError(
                    f"the models could not be loaded; the replica's log has the trace: {answer['message']}"
                )
            silent_since = None
        elif application.status == ApplicationStatus.RUNNING:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _PATIENCE_SECONDS:
                raise UsageError(
                    f"the endpoint runs but does not answer at {url}: Serve was started on this cluster with another "
                    "host or port before; stop it there first, or use that address"
                )
        time.sleep(0.2)
    raise UsageError(
        f"not ready within {settings.load_timeout_seconds:g} s (load_timeout_seconds); the cluster has "
        f"{ray.available_resources().get('CPU', 0):g} CPUs and {ray.available_resources().get('GPU', 0):g} GPUs free, "
        f"a replica takes {settings.num_cpus:g} and {settings.num_gpus:g}"
    )
