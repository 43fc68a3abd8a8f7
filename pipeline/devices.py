"""Whether a machine, or a cluster, has what a command asks for, where no other can be added. torch and Ray are imported where they
are asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from realcustom.errors import UsageError
from realcustom.inference.address import check_port
from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.cluster import NODE_GROUP, is_embedded, local_cpus
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.settings import Device, PreprocessSettings
from realcustom.training.settings import TrainSettings


def check_training(settings: TrainSettings, local: bool, address: str | None) -> None:
    """Raise UsageError if a run in this process, or on an embedded cluster, would wait for workers for ever."""
    if not local and not is_embedded(address):
        return
    name = "min_workers" if settings.min_workers else "num_workers"  # with min_workers it begins with so many
    workers = 1 if local else getattr(settings, name)
    asked = "" if local else f" with train.{name}={workers}"
    if settings.use_gpu:
        require_gpus(workers, f"train.use_gpu=true{asked}", "set train.use_gpu=false")
    elif not local:
        _require_cpus(workers, f"train.{name}={workers}")


def check_stages(stages: Sequence[Stage], settings: PreprocessSettings, local: bool, address: str | None) -> None:
    """Raise UsageError if models of `stages` could not run in this process, or never would on an embedded cluster."""
    if not any(stage.models_of(settings) for stage in stages) or not (local or is_embedded(address)):
        return
    compute = settings.compute
    if compute.device is Device.CUDA:
        require_gpus(1, "preprocess.compute.device=cuda", "set preprocess.compute.device=cpu")
    if not local:
        _require_cpus(compute.threads, f"preprocess.compute.threads={compute.threads}")


def check_drawing(workers: int, address: str | None) -> None:
    """Raise UsageError if workers that draw on a GPU each would wait for ever on an embedded cluster."""
    if is_embedded(address):
        require_gpus(workers, f"--workers {workers} --gpu", "leave --gpu out")


def require_gpu_node(setting: str, way_out: str) -> None:
    """Raise UsageError if the cluster that this process is connected to has no node with a GPU and is not known to grow.

    Args:
        setting: what asks for one, as `train.use_gpu=true`.
        way_out: what to set instead, as part of a sentence.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if any(node["Resources"].get("GPU", 0) > 0 or NODE_GROUP in node["Labels"] for node in nodes):
        return
    raise UsageError(
        f"{setting} asks for a GPU, and none of the cluster's {len(nodes)} nodes has one: {way_out}, or name a cluster that has "
        "some with --address"
    )


def check_serving(settings: ServeSettings, address: str | None) -> None:
    """Raise UsageError if a replica would never start on an embedded cluster, or its port is taken."""
    if not is_embedded(address):
        return
    check_port(settings.host, settings.port)  # Serve starts anew
    if settings.num_gpus > 0:
        require_gpus(math.ceil(settings.num_gpus), f"serve.num_gpus={settings.num_gpus:g}", "set serve.num_gpus=0")
    if settings.device is not None:
        check_device(settings.device, f"serve.device={settings.device}")
    _require_cpus(math.ceil(settings.num_cpus), f"serve.num_cpus={settings.num_cpus:g}")


def _require_cpus(number: int, setting: str) -> None:
    if number > local_cpus():
        raise UsageError(
            f"{setting} asks for {number} CPUs, and the Ray that this command starts has {local_cpus()}: ask for fewer, or "
            f"name a larger cluster with --address"
        )


def check_device(device: str, setting: str) -> None:
    """Raise UsageError, naming `setting`, if torch cannot use the device of that name here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device; a torch that was built without it
        said = str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"{setting}: torch {torch.__version__} cannot use '{device}' here ({said}): leave it out, or make the environment "
            "with another torch (TORCH_BACKEND, README)"
        ) from error


def require_gpus(number: int, setting: str, way_out: str) -> None:
    """Raise UsageError if torch can use fewer than `number` GPUs of this machine.

    Args:
        setting: what asks for them, as `train.use_gpu=true`.
        way_out: what to set instead, as part of a sentence.
    """
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < number:
        build = "" if torch.version.cuda or torch.version.hip else f" (torch {torch.__version__} is built without CUDA)"
        raise UsageError(
            f"{setting} asks for {number} GPU(s), and this machine has {there} that torch can use{build}: {way_out}, or "
            f"name a cluster that has them with --address"
        )
