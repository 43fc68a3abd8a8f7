"""The endpoint on Ray Serve: the application that `realcustom serve`, `serve run` and `serve deploy` run.

Two deployments. `api`: HTTP, limits, pictures and streams, on a part of a CPU, as many as wanted. `engine`: one engine each.
With several processes of the API a third, `answers`, keeps the answers of Idempotency-Keys for all of them.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from realcustom import config, log
from realcustom.errors import UsageError
from realcustom.inference.adapters import find_models
from realcustom.inference.answer_keeper import AnswerKeeper
from realcustom.inference.api import build_api
from realcustom.inference.engine_server import EngineServer, ModelSource
from realcustom.inference.keys import Key, find_keys
from realcustom.inference.models import ServedModel
from realcustom.inference.naming import MakeNaming, Naming
from realcustom.inference.ray_metrics import RayObserver
from realcustom.inference.remote import Engines
from realcustom.inference.routing import STATS_SECONDS, HoldersFirst
from realcustom.inference.running import RunningRequests
from realcustom.inference.scaling import ByQueuedSeconds
from realcustom.inference.settings import ServeSettings

APP_NAME = "realcustom"
API, ENGINE, KEEPER = "api", "engine", "answers"  # names of the deployments
_SPARE_REQUESTS = 64  # beyond those that the engines have places for: they are answered with 429, or ask for health
LINES = LoggingConfig(enable_access_log=False, log_level="WARNING")  # `Front` writes the access log


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """What `build` takes: the models, and the settings of the endpoint."""

    base: str  # diffusers folder or hub id
    adapter: str | None = None  # adapter checkpoint, path or storage URI; none = plain text-to-image
    image_encoder: str | None = None  # overrides the image encoder that the adapter names
    naming: str | None = None  # MODULE:CLASS, made with serve.detector: finds the word of an edit that has none
    serve: ServeSettings = field(default_factory=ServeSettings)


class ApiServer:
    """One replica of the HTTP interface."""

    def __init__(
        self,
        settings: ServeSettings,
        engines: DeploymentHandle[Any],
        models: tuple[ServedModel, ...],
        keys: tuple[Key, ...],
        instance: str,
        naming: MakeNaming | None,
        log_level: str,
        keeper: DeploymentHandle[Any] | None,
    ) -> None:
        log.configure(log_level)
        self._observer, self._running = RayObserver(), RunningRequests()
        peers = None if keeper is None else _peers
        made = None if naming is None else naming()
        self._keys, self._engines = keys, Engines(settings, engines, models, instance, made, keeper, peers)

    async def cancel(self, name: tuple[str, str]) -> bool:
        """Cancel a request of this process, by its key's name and its id; False: it has none of this id."""
        return self._running.cancel(*name)

    def __serve_build_asgi_app__(self) -> FastAPI:
        observer, running = self._observer, self._running
        api = build_api(self._engines, self._keys, has_proxy=True, observer=observer, running=running)

        async def watch() -> None:
            self._engines.watch()

        api.router.on_startup.append(watch)
        return api


def _peers() -> DeploymentHandle[Any]:
    return serve.get_deployment_handle(API, serve.get_replica_context().app_name)


def build(arguments: Mapping[str, Any]) -> Application:
    """The application, for Serve's command line and configuration files: `import_path: realcustom.inference.app:build`.

    Args:
        arguments: plain data of `ServeArguments`, checked strictly.
    Raises:
        UsageError: a wrong setting, key or adapter.
    """
    given = config.build(ServeArguments, arguments)
    return application(given, None if given.naming is None else partial(_imported(given.naming), given.serve.detector))


def application(
    given: ServeArguments,
    naming: MakeNaming | None,
    instance: str = "",
    models: tuple[ServedModel, ...] | None = None,
) -> Application:
    """The application.

    Args:
        naming: makes what finds the word of an edit that has none; None = an edit must have it.
        instance: returned by the readiness route.
        models: as `find_models` found them for `given`; None = they are found here, which reads the adapters.
    Raises:
        UsageError: as `build`.
    """
    settings, keys = given.serve, find_keys(given.serve)
    if settings.detector is not None and naming is None:
        raise UsageError(
            "serve.detector: nothing uses it; name what does, as `naming: realcustom.pipeline.naming:Naming`"
        )
    models = find_models(given.base, given.adapter, settings.adapters) if models is None else models
    if settings.max_adapters == 1 < sum(model.adapter is not None for model in models):
        raise UsageError(
            "serve.max_adapters: the first adapter stays loaded, so with more of them it must be 2 or more"
        )
    source = ModelSource(base=given.base, models=models, image_encoder=given.image_encoder)
    engines = _engine_deployment(settings).bind(settings, source, log.level())
    api = serve.deployment(
        serve.ingress()(ApiServer),
        name=API,
        num_replicas=settings.api_replicas,
        # as many are drawn, as many send their body, and there is always a place for a request without a body
        max_ongoing_requests=2 * settings.places + _SPARE_REQUESTS,
        max_queued_requests=settings.places + _SPARE_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=LINES,
        ray_actor_options={"num_cpus": settings.api_cpus},
    )
    instance = instance or uuid.uuid4().hex
    keeper = _keeper_deployment(settings) if settings.api_replicas > 1 else None
    return api.bind(settings, engines, models, keys, instance, naming, log.level(), keeper)


def _engine_deployment(settings: ServeSettings) -> Any:
    scaling = AutoscalingConfig(
        min_replicas=settings.min_engines,
        initial_replicas=max(1, settings.min_engines),
        max_replicas=settings.max_engines,
        upscale_delay_s=settings.scale_up_seconds,
        downscale_delay_s=settings.scale_down_seconds,
        policy=AutoscalingPolicy(
            policy_function=ByQueuedSeconds, policy_kwargs={"scale_seconds": settings.scale_seconds}
        ),
    )
    fixed = settings.min_engines == settings.max_engines
    return serve.deployment(
        EngineServer,
        name=ENGINE,
        **({"num_replicas": settings.min_engines} if fixed else {"autoscaling_config": scaling}),
        max_ongoing_requests=settings.max_queue + 1 + _SPARE_REQUESTS,
        max_queued_requests=settings.places + _SPARE_REQUESTS,  # in each process of the API, while no engine runs too
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2.0,  # a lost lease ends with the next one (`leases.py`)
        health_check_timeout_s=30.0,
        logging_config=LINES,
        request_router_config=RequestRouterConfig(
            request_router_class=HoldersFirst, request_routing_stats_period_s=STATS_SECONDS
        ),
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )


def _keeper_deployment(settings: ServeSettings) -> Application:
    keeper = serve.deployment(
        AnswerKeeper,
        name=KEEPER,
        max_ongoing_requests=10_000,  # most of them wait for who draws
        graceful_shutdown_timeout_s=0.0,
        logging_config=LINES,
        ray_actor_options={"num_cpus": 0},
    )
    return keeper.bind(settings.max_idempotency_bytes, settings.idempotency_seconds)


def _imported(name: str) -> Callable[[str | None], Naming]:
    module, _, kind = name.partition(":")
    try:
        found: Callable[[str | None], Naming] = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"naming: there is no class '{name}' ({error}); give it as MODULE:CLASS") from error
    return found
