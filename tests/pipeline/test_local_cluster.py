"""A cluster of several nodes and a store on this machine; jobs on it, as docs/cluster.md has them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from realcustom import storage
from realcustom.checkpoint import adapter_sha256
from realcustom.pipeline import local_cluster as local_cluster_module
from realcustom.pipeline import owned
from realcustom.pipeline.jobs_api import JobsApi
from realcustom.pipeline.local_cluster import LocalCluster, free_ports, local_cluster
from realcustom.pipeline.submission import JobRequest
from realcustom.sprites.corpus import CorpusSettings, write_corpus
from tests.support.loopback import free_port
from tests.support.object_store import ObjectStore
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cluster.md"
PATIENCE = 300
OF_RAY_DATA = ("_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker")


def test_chosen_ports_are_free_and_different() -> None:
    ports = free_ports(40)
    assert len(set(ports)) == 40


def test_a_token_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    place, write, seen = tmp_path / ".ray" / "auth_token", os.fdopen, []

    def looked_at(*arguments: Any) -> Any:
        seen.append(place.exists() and place.read_text())
        return write(*arguments)

    monkeypatch.setattr(os, "fdopen", looked_at)
    local_cluster_module._make_token()
    first = place.read_text()
    assert seen == [False] and len(first) == 32 and place.stat().st_mode & 0o777 == 0o600
    local_cluster_module._make_token()
    assert place.read_text() == first and [path.name for path in place.parent.iterdir()] == ["auth_token"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2, 3, s3=True) as cluster:
        patch = pytest.MonkeyPatch()
        for name, value in cluster.environment().items():
            patch.setenv(name, value)
        yield cluster
        patch.undo()


@pytest.fixture(scope="module")
def corpus(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, CorpusSettings(pictures=48, per_shard=12))
    for path in (folder / "shards").iterdir():
        storage.write_bytes(f"s3://realcustom/raw/{path.name}", path.read_bytes())
    return folder / "shards"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "realcustom", *arguments], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT
    )


def objects(uri: str) -> dict[str, bytes]:
    return {entry.name: storage.read_bytes(entry.uri) for entry in storage.list_files(uri)}


def working() -> list[str]:
    """What is at work on the cluster: actors, a job's own among them, and what of its resources is in use.

    Ray Data's own actors, one of each for a cluster's life, are where the drivers are: on the head, which stays anyhow.
    """
    api = JobsApi(None)

    def all_of(kind: str) -> Any:
        return api.ask("GET", f"/api/v0/{kind}?detail=1&limit=1000")["data"]["result"]["result"]

    [head] = [node["node_id"] for node in all_of("nodes") if node["is_head_node"] and node["state"] == "ALIVE"]
    living = [
        str(actor["class_name"])
        for actor in all_of("actors")
        if actor["state"] != "DEAD" and not (actor["class_name"] in OF_RAY_DATA and actor["node_id"] == head)
    ]
    return living + [part for part in re.split("[;,] ", api.usage()) if not re.match(r"0(\.0)?B?/", part)]


@pytest.mark.cluster
def test_the_page_s_commands_give_a_local_run_s_bytes(cluster: LocalCluster, tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in blocks[1].splitlines() if line]
    assert [line[:2] for line in lines] == [["realcustom", verb] for verb in ("preprocess", "submit", "jobs")]
    for line in lines:
        done = command(*line[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"preprocess-score-\w+ +SUCCEEDED", done.stdout)
    [ray, *by_hand] = shlex.split(blocks[2])
    assert ray == "ray"
    program = [sys.executable, "-m", "ray.scripts.scripts", *by_hand]
    again = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0 and "score@" in again.stdout, again.stdout + again.stderr
    wait_for(lambda: not working(), 30, lambda: str(working()))  # after the last job nothing of ours runs
    for verb, source in (("ingest", "tests/data/photos"), ("score", str(tmp_path))):
        done = command("preprocess", verb, "--local", "--input", source, "--output", str(tmp_path))
        assert done.returncode == 0, done.stderr
    local = [path for path in tmp_path.rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in local}
    assert objects("s3://realcustom/records") == files
    assert {name.partition("@")[0] for name in files} == {"ingest", "score"}
    storage.delete_folder("s3://realcustom/records")  # the runbook's commands have records of their own there


@pytest.mark.cluster
def test_a_job_s_end_is_the_command_s(cluster: LocalCluster, corpus: Path) -> None:
    verb = ["preprocess", "score", "--input", "s3://realcustom/no", "--output", "s3://realcustom"]
    wrong = command("submit", "--name", "wrong", "--", *verb)
    assert wrong.returncode == 2 and "error: " in wrong.stdout and "Traceback" not in wrong.stdout, wrong.stdout
    taken = command("submit", "--name", "wrong", "--", "schema")
    assert taken.returncode == 2 and taken.stderr.endswith("--name: the cluster has a job wrong; give another name\n")
    none = command("jobs", "wait", "nothing")
    assert none.returncode == 2 and "no job nothing on the cluster" in none.stderr
    room = command("submit", "--gpus", "1", "--", "train")
    assert room.returncode == 2 and "--wait-for-room" in room.stderr
    detached = command("submit", "--detach", "--name", "quick", "--label", "who=me", "--", "--version")
    assert detached.stdout == "quick\n"
    waited = command("jobs", "wait", "quick")
    assert waited.returncode == 0 and waited.stdout == "job quick succeeded\n"
    assert "realcustom 0" in command("jobs", "logs", "quick").stdout
    assert re.search(r"quick +SUCCEEDED .* who=me +--version", command("jobs", "list").stdout)


@pytest.mark.cluster
def test_a_secret_is_in_a_job_s_workers_and_not_in_what_is_sent(cluster: LocalCluster, tmp_path: Path) -> None:
    place, program = tmp_path / "value", tmp_path / "program.py"
    place.write_text("hunter2\n")
    program.write_text(
        "import os, ray\nray.init()\n"
        "print('a worker has', ray.get(ray.remote(lambda: os.environ.get('TOKEN')).remote()))\n"
    )
    body = JobRequest(arguments=["--version"], name="secret", secrets={"TOKEN": f"file:{place}"}).to_ray("")
    del body["runtime_env"]["working_dir"]  # in the place of our command's, a program that looks
    api = JobsApi(None)
    api.submit({**body, "entrypoint": shlex.join([sys.executable, str(program)])})
    assert command("jobs", "wait", "secret").returncode == 0, api.logs("secret")
    assert "a worker has hunter2" in api.logs("secret")
    assert "hunter2" not in json.dumps(api.ask("GET", "/api/jobs/secret"))
    missing = command("submit", "--secret", "TOKEN=env:NOT_THERE", "--", "--version")
    assert missing.returncode == 2 and "error: the secret TOKEN: this node has no variable NOT_THERE" in missing.stdout


@pytest.mark.cluster
def test_the_runbook_s_commands(cluster: LocalCluster, corpus: Path) -> None:
    """In their order, with what they speak of: a job, and an endpoint whose adapter is to be the earlier one."""
    port = free_port()
    here = ("--set", f"serve.port={port}", "--set", "serve.threads=1", "--set", "serve.api_replicas=1")
    zoo = ROOT / "sprites" / "zoo"
    adapters = {"adapters/step-00000100": zoo / "adapter_crop.safetensors", "adapter": zoo / "adapter.safetensors"}
    for name, path in adapters.items():
        storage.write_bytes(f"s3://realcustom/train/{name}.safetensors", path.read_bytes())
    ingest = (
        "preprocess",
        "ingest",
        "--local",
        "--input",
        "s3://realcustom/raw",
        "--output",
        "s3://realcustom/records",
    )
    assert command(*ingest).returncode == 0
    assert command("submit", "--detach", "--name", "train-3f2a1c", "--", "--version").returncode == 0
    serve = ("serve", "--adapter", "s3://realcustom/train/adapter.safetensors", "--base", "sprites/zoo/pipeline")
    assert command("submit", "--detach", "--name", "endpoint", "--", *serve, *here).returncode == 0
    assert served(port) == adapter_sha256(str(adapters["adapter"]))
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "runbook.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line]
    said = ""
    for line in lines:
        done = command(*shlex.split(line, comments=True)[1:], *(here if " serve " in line else ()))
        assert done.returncode in (0, 143), done.stdout + done.stderr
        said += done.stdout
    assert f"sha256: {served(port)}" in said and served(port) == adapter_sha256(str(adapters["adapters/step-00000100"]))
    assert command("jobs", "stop", "endpoint-before").returncode == 0
    assert command("jobs", "wait", "endpoint-before").returncode == 143


def served(port: int) -> str:
    """The sha256 of the adapter of the endpoint, when that is ready."""
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz").is_success
        except httpx.HTTPError:
            return False

    wait_for(is_ready, PATIENCE, lambda: command("jobs", "list").stdout)
    [adapter] = httpx.get(f"{url}/v1/adapters").json()["data"]
    return str(adapter["sha256"])


@pytest.mark.cluster
def test_after_the_loss_of_the_store_and_of_the_head_the_same_command_goes_on(
    object_store: ObjectStore, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, CorpusSettings(pictures=240, per_shard=4))
    shards = list((tmp_path / "shards").iterdir())
    for path in shards:
        storage.write_bytes(f"{bucket}/raw/{path.name}", path.read_bytes())
    settings = ("--set", "preprocess.execution.attempts=2", "--set", "preprocess.execution.workers=1")
    verb = ("preprocess", "ingest", "--input", f"{bucket}/raw", "--output", f"{bucket}/out", *settings)

    def done() -> int:
        try:
            return sum("/manifests/" in entry.name for entry in storage.list_files(f"{bucket}/out"))
        except FileNotFoundError:  # nothing is there yet
            return 0

    def begin() -> subprocess.Popen[bytes]:
        before = done()
        process = subprocess.Popen([sys.executable, "-m", "realcustom", "submit", "--", *verb], cwd=ROOT)
        wait_for(lambda: done() > before, PATIENCE)
        return process

    with local_cluster(1, 3) as cluster:
        for name, value in cluster.environment().items():
            monkeypatch.setenv(name, value)
        process = begin()
        object_store.away(30)
        assert process.wait(PATIENCE) == 2, "it said why, and ended"
        object_store.wait()
        process = begin()
        cluster.nodes[0].kill()
        process.send_signal(signal.SIGINT)  # else it waits for the head to come back
        assert process.wait(60) == 130
    before = done()
    assert 0 < before < len(shards)
    with local_cluster(1, 3) as cluster:
        for name, value in cluster.environment().items():
            monkeypatch.setenv(name, value)
        again = command("submit", "--", *verb)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{before} of {len(shards)} units are done already" in again.stdout and done() == len(shards)


@pytest.mark.cluster
def test_a_head_that_keeps_its_state_comes_back_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, CorpusSettings(pictures=240, per_shard=4))
    shards = list((tmp_path / "shards").iterdir())
    verb = ("preprocess", "ingest", "--input", "s3://realcustom/raw", "--set", "preprocess.execution.workers=1")
    output = ("--output", "s3://realcustom/out")

    def done() -> int:
        return sum("/manifests/" in entry.name for entry in storage.list_files("s3://realcustom"))

    with local_cluster(2, 3, s3=True, head_cpus=0, keeps_state=True) as cluster:
        for name, value in cluster.environment().items():
            monkeypatch.setenv(name, value)
        for path in shards:
            storage.write_bytes(f"s3://realcustom/raw/{path.name}", path.read_bytes())
        submitted = [sys.executable, "-m", "realcustom", "submit", "--name", "first", "--", *verb, *output]
        process = subprocess.Popen(submitted, cwd=ROOT)
        wait_for(lambda: done() > 0, PATIENCE)
        head, other = cluster.nodes
        head.kill()
        cluster.nodes.remove(head)
        cluster.start_head()
        cluster.wait_for_api()
        assert command("jobs", "stop", "first").returncode == 0, "the next head knows it"
        assert process.wait(PATIENCE) in (1, 143), "its output was followed to its end"
        before = done()
        again = command("submit", "--name", "second", "--", *verb, *output)
        assert again.returncode == 0, again.stdout + again.stderr
        assert 0 < before < len(shards) == done()
        assert f"{before} of {len(shards)} units are done already" in again.stdout
        assert other.process.poll() is None and len(JobsApi(None).nodes()) == 2
        here = command(*verb[:2], "--local", *verb[2:], "--output", str(tmp_path / "out"))
        assert here.returncode == 0, here.stderr
        wanted = {
            path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
            for path in (tmp_path / "out").rglob("*")
            if path.is_file()
        }
        assert objects("s3://realcustom/out") == wanted


@pytest.mark.cluster
def test_the_readme_s_ten_lines(tmp_path: Path) -> None:
    """As they stand, in a clone; only the environment is this one."""
    [block] = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block.count("\n") <= 10
    script = block.replace("ADDRESS", str(ROOT)).replace("make environment", f"ln -s {sys.prefix} .venv")
    others = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env={**others, "PYTHONPATH": str(tmp_path / "realcustom")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"preprocess-score-\w+ +SUCCEEDED", done.stdout), done.stdout + done.stderr


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a command's cluster; those that a failed test has left are ended."""
    started: list[subprocess.Popen[str]] = []
    log = (tmp_path / "log").open("w")

    def start() -> subprocess.Popen[str]:
        arguments = ["cluster", "local", "--nodes", "2", "--cpus", "1"]
        program = [sys.executable, "-m", "realcustom", *arguments]
        started.append(subprocess.Popen(program, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    log.close()


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_cluster_ends_with_its_command(
    number: signal.Signals, clusters: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Two at once, on ports of their own; whatever ends the command, none of its processes is left."""
    processes = [clusters() for _ in range(2 if number is signal.SIGTERM else 1)]
    for process in processes:
        assert process.stdout is not None
        assert "ready\n" in process.stdout, (tmp_path / "log").read_text()
    time.sleep(1.0)
    trees = [owned.descendants([process.pid]) for process in processes]
    for process in processes:
        os.kill(process.pid, number)
        process.wait(60)
    deadline = time.monotonic() + 30
    while left := [alive for tree in trees for alive in owned.alive(tree)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
