"""A training run as one call: check the inputs, continue or begin, train in-process or on a Ray cluster, return the
result.

The output folder holds `settings.yaml`, `starts.json`, `metrics.jsonl`, `checkpoints/`, `samples/`, and at the end
`adapter.safetensors` and `result.json`. Calling again with the same arguments continues an unfinished run from its last
checkpoint and returns a finished run's result at once; with more `steps`, a finished run is trained further.
"""

from __future__ import annotations

import _thread
import hashlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml

from realcustom import storage
from realcustom.checkpoint import adapter_sha256, read_header
from realcustom.config import to_dict
from realcustom.errors import UsageError
from realcustom.identity import check_base, model_identity, resolve_model
from realcustom.leases import only_writer
from realcustom.machine import available_cores, torch_threads
from realcustom.settings import MethodSettings
from realcustom.store import Store, check_readable, check_writable
from realcustom.training import data
from realcustom.training.branch import find_parent
from realcustom.training.checkpoints import list_checkpoints, step_of
from realcustom.training.data import split
from realcustom.training.failures import full_disk
from realcustom.training.indexing import open_index
from realcustom.training.job import TrainingJob, split_parent
from realcustom.training.metrics_file import read_rows
from realcustom.training.optimizers import check_optimizer
from realcustom.training.settings import OPERATIONAL, Schedule, TrainSettings, may_change
from realcustom.training.sinks import check_loggers
from realcustom.training.stopping import stop_at_signals
from realcustom.training.world import World

logger = logging.getLogger(__name__)

# of the settings of tokens and image encoder, those that weights are not made for; the model is compared by its identity
_APART_FROM_WEIGHTS = ("gamma_num_train", "influence_quantity", "text_mask_mode", "mask_latent", "model")
_WAY_OUT = {  # of a difference that has one of its own
    "train.steps": "its learning rate ends with its last step: only a run with train.schedule=constant, or wsd, is trained "
    "further"
}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run."""

    adapter: str  # path or URI of the adapter checkpoint
    sha256: str  # of that file, hex
    loss_before: float  # validation loss at fixed noise and timesteps, before the first step
    loss_after: float  # and after the last
    curve: tuple[dict[str, Any], ...]  # the rows of metrics.jsonl: `step` with `loss` and more, or with `val_loss`


def train(
    records: str,
    output: str,
    base: str,
    image_encoder: str | None,
    method: MethodSettings,
    settings: TrainSettings,
    initial_adapter: str | None = None,
    local: bool = False,
    parent: str | None = None,
) -> TrainResult:
    """Train the adapter and the scoring module of `method` on training records.

    Args:
        records: folder (or storage URI) of Parquet files in the training record's schema.
        output: the run's folder or storage URI; workers on other machines must reach it too.
        base: diffusers folder or hub id of the frozen base model.
        image_encoder: folder or hub id; None: `method.image_encoder.model`.
        initial_adapter: adapter checkpoint to start from; None: new weights.
        local: train in this process, without Ray, as the only worker.
        parent: `RUN` or `RUN@STEP`: begin at that run's latest checkpoint, or at that of a step, with its weights, moments
            and step count; settings may differ from the parent's.
    Raises:
        UsageError: a missing or unsuitable input, or an `output` of a run with another configuration (nothing is
            written then); a storage that does not answer within `settings.retries`; TrainingDiverged if the loss stayed
            non-finite.
        Stopped: the process was sent SIGTERM or SIGINT. The running step was finished and a checkpoint written.
        KeyboardInterrupt: it was sent SIGINT a second time.
        RuntimeError: workers were lost more often than `settings.max_failures`; or a bug in one, with its trace.
    """
    output = output if storage.is_remote(output) else os.path.abspath(output)
    for place in (records, output, *([initial_adapter] if initial_adapter else []), *([parent] if parent else [])):
        check_readable(place)  # a wrong address is reported at once, a later outage is retried
    check_optimizer(settings)
    check_loggers(settings.loggers)
    encoder = image_encoder or method.image_encoder.model
    job = make_job(records, output, base, encoder, method, settings, initial_adapter, parent)
    finished = _finished(job)
    if finished is not None:
        logger.info("%s is finished already", output)
        return finished

    check_base(base)
    check_writable(output)
    with only_writer(storage.join(output, "leases"), output, Store(settings.retries), _stop):
        if local:
            if settings.num_workers != 1:
                logger.warning("num_workers=%d has no effect: in-process training is one worker", settings.num_workers)
            if settings.async_validation:
                logger.warning("async_validation=true has no effect: a task of its own needs Ray")
            _run_local(replace(job, settings=replace(settings, async_validation=False)))
        else:
            from realcustom.training.distributed import run_distributed  # the only part that imports ray

            run_distributed(job)
    result = _finished(job)
    assert result is not None, f"the run ended without a result in {output}"
    return result


def make_job(
    records: str,
    output: str,
    base: str,
    image_encoder: str,
    method: MethodSettings,
    settings: TrainSettings,
    initial_adapter: str | None = None,
    parent: str | None = None,
) -> TrainingJob:
    """The job of a run, after all checks that need no model; the arguments and errors are those of `train`."""
    if parent is not None and initial_adapter is not None:
        raise UsageError("a run begins from an adapter or from a step of another run: give --initial-adapter or --from")
    store = Store(settings.retries)
    index = open_index(records, store)
    described, reported = (store.exists(storage.join(records, name)) for name in ("stage.json", "report.json"))
    if described and not reported:
        logger.warning("the stage that writes %s has not finished: only the records there are trained on", records)
    split(index, settings.validation_fraction, settings.validation_records)
    branch = None if parent is None else find_parent(_absolute_run(parent), output, store)
    if branch is not None and branch.step >= settings.steps:
        raise UsageError(
            f"--from {parent}: {branch.step} steps are done there, train.steps={settings.steps}; give more"
        )
    # absolute, or with the revision: as in the stage `encode`, and the same for a resumed run
    base, image_encoder = resolve_model(base), resolve_model(image_encoder)
    encoder_identity = model_identity(image_encoder)
    adapter_hash = None
    if initial_adapter is not None:
        header = read_header(initial_adapter, store)
        _check_same_method(initial_adapter, header.settings, method)
        if header.image_encoder != encoder_identity:
            said = "the initial adapter was trained with image encoder %s, this run has another"
            logger.warning(said, header.image_encoder)
        adapter_hash = adapter_sha256(initial_adapter, store)
    method = replace(method, image_encoder=replace(method.image_encoder, model=encoder_identity))  # a folder may move
    resolved = {
        "records": index.identity,
        "base": model_identity(base),
        "image_encoder": encoder_identity,
        "initial_adapter": adapter_hash,
        "method": to_dict(method),
        "data_order": data.VERSION,
        "train": {name: value for name, value in to_dict(settings).items() if name not in OPERATIONAL},
        **({} if branch is None else {"parent": branch.provenance}),
    }
    free = may_change(settings)
    decisive = {**resolved, "train": {name: value for name, value in resolved["train"].items() if name not in free}}
    _check_same_run(storage.join(output, "settings.yaml"), decisive, free, store)
    _check_rate_not_fallen(output, settings, store)
    return TrainingJob(
        records=_absolute(records),
        output=output,
        base=base,
        image_encoder=image_encoder,
        method=method,
        settings=settings,
        initial_adapter=None if initial_adapter is None else _absolute(initial_adapter),
        parent=branch,
        resolved=resolved,
        identity=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16],
    )


def _absolute(path: str) -> str:
    """A local path as absolute, so that a worker with another working directory finds it; a hub id or URI unchanged."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _absolute_run(parent: str) -> str:
    run, step = split_parent(parent)
    return _absolute(run) if step is None else f"{_absolute(run)}@{step}"


def _check_same_method(adapter: str, theirs: MethodSettings, ours: MethodSettings) -> None:
    """Raise UsageError where an adapter's weights are of other computations than this run's."""
    before, now = dict(_leaves(to_dict(theirs))), dict(_leaves(to_dict(ours)))
    for name in sorted(now):
        section, _, setting = name.partition(".")
        decides = section in ("tokens", "image_encoder") and setting not in _APART_FROM_WEIGHTS
        if decides and before[name] != now[name]:
            raise UsageError(
                f"{adapter} was trained with method.{name} {before[name]!r}, this run has {now[name]!r}; set it as there, or "
                "begin without --initial-adapter"
            )


def _check_rate_not_fallen(output: str, settings: TrainSettings, store: Store) -> None:
    """Raise UsageError where a run's `steps` change although its rate has begun to fall towards the old ones."""
    uri = storage.join(output, "settings.yaml")
    if settings.schedule is not Schedule.WSD or not store.exists(uri):
        return
    before = int(yaml.safe_load(store.read(uri))["train"]["steps"])
    falls = min(before, settings.steps) - settings.decay
    done = [step_of(checkpoint) for checkpoint in list_checkpoints(storage.join(output, "checkpoints"), store)]
    if before == settings.steps or not done or done[-1] <= falls:
        return
    whole = [step for step in done if step <= falls]
    way = f"branch from a step before: --from {output}@{whole[-1]} --output NEW" if whole else "choose another --output"
    raise UsageError(
        f"train.steps was {before} there and is {settings.steps} now; the rate of schedule=wsd has begun to fall at step "
        f"{falls}, and {done[-1]} are done; {way}"
    )


def _check_same_run(uri: str, decisive: Mapping[str, Any], free: frozenset[str], store: Store) -> None:
    if not store.exists(uri):
        return
    before, now = dict(_leaves(yaml.safe_load(store.read(uri)))), dict(_leaves(decisive))
    for name in sorted(before.keys() | now.keys()):
        if name.removeprefix("train.") in free or before.get(name) == now.get(name):
            continue
        raise UsageError(
            f"{os.path.dirname(uri)} belongs to a run of another configuration: {name} was {before.get(name)!r} "
            f"there and is {now.get(name)!r} now; {_WAY_OUT.get(name, 'choose another output folder or remove that one')}"
        )


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _finished(job: TrainingJob) -> TrainResult | None:
    store = Store(job.settings.retries)
    result_uri, adapter_uri = (storage.join(job.output, name) for name in ("result.json", "adapter.safetensors"))
    if not store.exists(result_uri) or not store.exists(adapter_uri):
        return None
    result = json.loads(store.read(result_uri))
    done, steps = result.get("steps", 0), job.settings.steps
    if result["identity"] != job.identity or done < steps:
        return None
    if done > steps:
        raise UsageError(f"{job.output} has done {done} steps, train.steps={steps} are fewer; give {done} or more")
    if adapter_sha256(adapter_uri, store) != result["sha256"]:
        raise UsageError(f"{adapter_uri} was changed after its run had finished; remove {result_uri} to write it again")
    return TrainResult(
        adapter=adapter_uri,
        sha256=result["sha256"],
        loss_before=result["loss_before"],
        loss_after=result["loss_after"],
        curve=tuple(read_rows(job.output, store)),
    )


def _stop(reason: str) -> None:
    """The lease is lost, and another run may begin: end as at SIGTERM."""
    logger.error("%s: the run ends after its step", reason)
    _thread.interrupt_main(signal.SIGTERM)


def _run_local(job: TrainingJob) -> None:
    from realcustom.training.worker import Worker

    device = torch.device("cuda" if job.settings.use_gpu else "cpu")
    stop = threading.Event()
    with torch_threads(job.settings.threads or available_cores()), stop_at_signals(stop):
        try:
            Worker(job, World(device=device), stop).run()
        except OSError as error:  # of a library that writes by itself
            full = full_disk(error)
            if full is None:
                raise
            raise full from error
