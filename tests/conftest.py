"""What all tests share: no network, one thread, tiny models, and one Ray cluster for those that need it."""

from __future__ import annotations

import os
import signal

# Before anything imports a library that reads them; workers and subprocesses inherit them.
os.environ["OMP_NUM_THREADS"] = "1"  # as torch's below, for libraries' own computing and for subprocesses
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.update(
    RAY_AUTH_MODE="token",  # the same on the cluster, in this process and in those that join
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",  # at Ray's own 15 its workers stand still while anything else computes
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",  # until Ray Train sees that its workers have ended; 2 otherwise
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",  # one process less for each run; it is for machines that can be taken away
)
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.pop("RAY_ADDRESS", None)  # a developer's own cluster is none of ours

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.object_store import ObjectStore, swift_variables

if TYPE_CHECKING:
    from realcustom.diffusion_pipeline import RealCustomPipeline
    from tests.support.tiny import TinyModels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests on Ray or an object store come first: they take longest, and so two processes end together."""
    long = {item.path for item in items if {"ray_cluster", "object_store"} & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> None:
    """A shell's background job is started with SIGINT ignored, one below nohup with SIGHUP; both would hand that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One torch thread: tests are small, and a second one waits for its core when the machine is busy.

    Before each test and its fixtures: an engine that ran in this process set the number for itself, and with another number
    the last bits of a product can be others.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def silent_logger() -> None:
    """Our logger as a library's user finds it: a command that an earlier test ran in this process set it up."""
    logger = logging.getLogger("realcustom")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Models of the real classes with random weights; no test changes their files."""
    from tests.support.tiny import write_tiny_models

    return write_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_models: TinyModels) -> RealCustomPipeline:
    """The pipeline of the tiny models; no test changes its weights."""
    from realcustom.diffusion_pipeline import RealCustomPipeline

    pipe = RealCustomPipeline.from_pretrained(
        tiny_models.base, adapter=tiny_models.adapter, image_encoder=tiny_models.image_encoder, device="cpu"
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of one local cluster of 8 logical CPUs; this process is connected, commands join by RAY_ADDRESS."""
    import ray

    from realcustom.pipeline.cluster import start_local

    address = start_local(num_cpus=8)
    os.environ["RAY_ADDRESS"] = address
    try:
        yield address
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An S3 server of its own, over loopback, which this process's environment names."""
    store = ObjectStore()
    variables = {"AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    for name, value in {**variables, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:
    """URI of an empty bucket on that server."""
    import boto3

    boto3.client("s3").create_bucket(Bucket="corpus")
    return "s3://corpus"


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty bucket of an OpenStack Swift that runs."""
    if not (variables := swift_variables()):
        pytest.skip("SWIFT_URL names no OpenStack Swift with its S3 API (key test:tester, secret testing)")
    import boto3

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the credentials that it saw
    client = boto3.client("s3")
    name = f"test-{os.getpid()}"
    client.create_bucket(Bucket=name)
    yield f"s3://{name}"
    while found := client.list_objects_v2(Bucket=name).get("Contents"):
        client.delete_objects(Bucket=name, Delete={"Objects": [{"Key": item["Key"]} for item in found]})
    client.delete_bucket(Bucket=name)
