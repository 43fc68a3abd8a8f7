"""All stages, training, evaluation and serving as jobs on paths and models of a store; a node is lost in the middle of each.

What they write is what a local run writes, byte for byte. The store is moto's, or the OpenStack Swift that SWIFT_URL names.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest

from realcustom import storage
from realcustom.checkpoint import adapter_sha256
from realcustom.pipeline import owned
from realcustom.pipeline.jobs_api import JobsApi
from realcustom.pipeline.local_cluster import LocalCluster, Node, local_cluster
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.sprites.corpus import CorpusSettings, write_corpus
from tests.support.jobs import Submitted, files, run_here, tree_here, tree_in_store, upload
from tests.support.loopback import free_port
from tests.support.object_store import swift_variables
from tests.support.suites import write_suite

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
ZOO = ROOT / "sprites" / "zoo"
BUCKET = f"nodes-{uuid.uuid4().hex[:8]}"  # a store that outlives the tests has those of earlier ones
STORE = f"s3://{BUCKET}"
CPUS = 3  # of each node but the head
MODELS = {  # settings of stages, and the folder of the zoo
    "score.clip": "clip",
    "score.heads": "heads",
    "caption.model": "blip",
    "subjects.detector": "grounding_dino",
    "subjects.segmenter": "sam",
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, and what all stages make of it in this process."""
    folder = tmp_path_factory.mktemp("local")
    write_corpus(folder, CorpusSettings(pictures=96, per_shard=4, corrupted=2))
    source = str(folder / "shards")
    for stage in CHAIN:
        run_here(
            "preprocess", stage.name, "--local", "--input", source, "--output", str(folder), *corpus_of(stage.name)
        )
        source = str(folder)
    return folder


@pytest.fixture(scope="module")
def cluster(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes, of which the head does no work; the store has models, and what each stage reads."""
    patch = pytest.MonkeyPatch()
    patch.setenv("REALCUSTOM_CACHE", str(tmp_path_factory.mktemp("cache")))
    swift = swift_variables()
    for name, value in swift.items():
        patch.setenv(name, value)  # its nodes have them too
    with local_cluster(3, CPUS, s3=not swift, head_cpus=0) as cluster:
        for name, value in cluster.environment().items():
            patch.setenv(name, value)
        boto3.Session().client("s3").create_bucket(Bucket=BUCKET)
        for place, root in (("shards", local), ("models", ZOO)):
            upload(root if place == "models" else root / place, f"{STORE}/{place}")
        for path in local.glob("*@*"):
            upload(path, f"{STORE}/before/{path.name}")
        yield cluster
    patch.undo()


def corpus_of(stage: str) -> tuple[str, ...]:
    """A corpus is named by where it is, else."""
    return ("--set", "preprocess.ingest.corpus=drawings") if stage == "ingest" else ()


def lose(cluster: LocalCluster, node: Node) -> None:
    """A node with all its processes, at once."""
    node.kill()
    cluster.nodes.remove(node)


def node_with(cluster: LocalCluster, word: str) -> Node:
    """A node, not the head, one of whose processes has a word in its title; the last one where none has."""
    for node in cluster.nodes[1:]:
        for process in owned.descendants([node.process.pid]):
            try:
                if any(word in part for part in psutil.Process(process.pid).cmdline()):
                    return node
            except psutil.Error:  # it has just ended
                continue
    return cluster.nodes[-1]


@pytest.mark.parametrize("stage", [stage.name for stage in CHAIN])
def test_a_stage(stage: str, cluster: LocalCluster, local: Path, tmp_path: Path) -> None:
    models = [f"preprocess.{name}={STORE}/models/{folder}" for name, folder in MODELS.items() if name.startswith(stage)]
    models += [f"base={STORE}/models/pipeline", f"method.image_encoder.model={STORE}/models/image_encoder"] * (
        stage == "encode"
    )
    source = f"{STORE}/shards" if stage == "ingest" else f"{STORE}/before"
    options = [*corpus_of(stage), *(word for model in models for word in ("--set", model))]
    job = Submitted(tmp_path, "preprocess", stage, "--input", source, "--output", f"{STORE}/out", *options)
    job.wait_until(
        lambda: any(name.startswith(f"{stage}@") and "/manifests/" in name for name in files(f"{STORE}/out"))
    )
    lose(cluster, node_with(cluster, "ray::"))
    cluster.add_node(CPUS)
    job.end()
    assert tree_in_store(f"{STORE}/out", stage) == tree_here(local, stage)


def test_training(cluster: LocalCluster, local: Path, tmp_path: Path) -> None:
    short: Sequence[str] = ("train.steps=60", "train.batch_size=4", "train.checkpoint_every=10", "train.val_every=30")
    short = (*short, "train.num_workers=1", "train.sample_records=0", "train.warmup=0", "train.log_every=5")
    settings = [word for setting in short for word in ("--set", setting)]
    run_here("train", "--local", "--input", str(local), "--output", str(tmp_path / "run"), *settings)
    models = ("--base", f"{STORE}/models/pipeline", "--image-encoder", f"{STORE}/models/image_encoder")
    job = Submitted(tmp_path, "train", "--input", f"{STORE}/before", "--output", f"{STORE}/run", *models, *settings)
    job.wait_until(lambda: any(name.startswith("checkpoints/") for name in files(f"{STORE}/run")))
    lose(cluster, node_with(cluster, "TrainWorker"))
    cluster.add_node(CPUS)
    job.end()
    assert adapter_sha256(f"{STORE}/run/adapter.safetensors") == adapter_sha256(
        tmp_path / "run" / "adapter.safetensors"
    )


def test_evaluation(cluster: LocalCluster, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", subjects=2)
    upload(suite.folder, f"{STORE}/suite")
    storage.write_bytes(f"{STORE}/prompts.txt", suite.prompts.read_bytes())

    def verb(subjects: str, prompts: str, models: str, output: str, *more: str) -> list[str]:
        return [
            *("evaluate", "--suite", "own", "--subjects", subjects, "--prompts", prompts, "--output", output),
            *("--adapter", f"shipped={models}/adapter.safetensors", "--base", f"{models}/pipeline"),
            *("--image-encoder", f"{models}/image_encoder", "--metric", f"dino_i@{models}/image_encoder"),
            *("--set", "evaluate.images_per_prompt=4", "--set", "evaluate.resamples=200", *more),
        ]

    run_here(*verb(str(suite.folder), str(suite.prompts), str(ZOO), str(tmp_path / "here"), "--local"))
    job = Submitted(
        tmp_path,
        *verb(f"{STORE}/suite", f"{STORE}/prompts.txt", f"{STORE}/models", f"{STORE}/evaluation", "--workers", "2"),
    )
    job.wait_until(lambda: any(name.startswith("images/") for name in files(f"{STORE}/evaluation")))
    lose(cluster, node_with(cluster, "ray::"))
    cluster.add_node(CPUS)
    job.end()
    for name in ("table.csv", "results.parquet"):
        assert storage.read_bytes(f"{STORE}/evaluation/{name}") == (tmp_path / "here" / name).read_bytes(), name


def replicas() -> dict[str, list[str]]:
    """The nodes on which Serve's deployments run, by the ids of Ray, one for each replica."""
    found = JobsApi(None).ask("GET", "/api/serve/applications/")["applications"].get("realcustom", {})
    return {
        name: [one["node_id"] for one in deployment["replicas"] if one["state"] == "RUNNING"]
        for name, deployment in found.get("deployments", {}).items()
    }


def test_serving(cluster: LocalCluster, tmp_path: Path) -> None:
    """Two engines and two processes of the API, one of each on a node: one node is lost, and the other one answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    models = f"{STORE}/models"
    job = Submitted(
        tmp_path,
        *("serve", "--adapter", f"{models}/adapter.safetensors", "--base", f"{models}/pipeline"),
        *("--set", f"method.image_encoder.model={models}/image_encoder", "--set", f"serve.port={port}"),
        *("--set", "serve.min_engines=2", "--set", "serve.max_engines=2", "--set", "serve.threads=1"),
        *("--set", "serve.api_replicas=2"),
    )
    body: dict[str, Any] = {"prompt": "a star on grass", "seed": 1, "num_inference_steps": 4}

    def picture() -> str | None:
        try:
            answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=30)
        except httpx.HTTPError:
            return None
        return str(answer.json()["data"][0]["b64_json"]) if answer.is_success else None

    def is_spread() -> bool:
        found = replicas()
        return all(len(found.get(name, ())) == len({*found.get(name, ())}) == 2 for name in ("api", "engine"))

    job.wait_until(lambda: picture() is not None and is_spread())
    first = picture()
    lose(cluster, node_with(cluster, "ServeReplica:realcustom:engine"))
    began, longest, last = time.monotonic(), 0.0, time.monotonic()
    while time.monotonic() - began < 30:
        found = picture()
        if found is not None:
            assert found == first
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        time.sleep(0.2)
    longest = max(longest, time.monotonic() - last)
    assert longest < 20, f"no answer for {longest:.0f} s"
    job.process.terminate()
    job.process.wait()
    cluster.add_node(CPUS)
