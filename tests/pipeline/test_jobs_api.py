"""Ray's jobs over HTTP: what can go wrong becomes one sentence within seconds."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.pipeline import far_side, jobs_api, submission
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.jobs_api import JobsApi, find_address
from realcustom.pipeline.packing import Package
from realcustom.pipeline.submission import JobRequest, as_estimate, submit
from tests.support.dashboard import GIB, Dashboard
from tests.support.loopback import running


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with running(Dashboard()) as server:
        yield server


def test_a_job_is_sent_once_with_its_package(dashboard: Dashboard) -> None:
    request = JobRequest(
        arguments=["preprocess", "score", "--input", "s3://b/a b"],
        name="score-1",
        labels={"team": "a"},
        environment={"A": "b"},
        cpus=1,
        memory_gib=1.5,
        retries=2,
    )
    submit(request, JobsApi(dashboard.url), wait_for_room=False)
    (job,) = dashboard.submitted
    assert job["metadata"] == {"verb": "preprocess score --input 's3://b/a b'", "label:team": "a"}
    assert job["entrypoint_num_cpus"] == 1 and job["entrypoint_memory"] == 1.5 * 2**30
    runtime = job["runtime_env"]
    assert isinstance(runtime, dict) and runtime["env_vars"]["A"] == "b" and runtime["env_vars"]["TQDM_DISABLE"] == "1"
    (package,) = dashboard.packages
    assert runtime["working_dir"] == f"gcs://{package}"
    with pytest.raises(UsageError, match="--name: the cluster has a job score-1; give another name"):
        submit(request, JobsApi(dashboard.url), wait_for_room=False)


@pytest.mark.parametrize("there", [True, False])
def test_a_job_whose_answer_is_lost_is_looked_for(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(jobs_api, "CHANGE_TIMEOUT", 0.3)
    state: dict[str, object] | int = 404
    if there:
        state = {"submission_id": "a", "status": "PENDING", "metadata": {"verb": "train --input 's3://b/a b'"}}
    request = JobRequest(arguments=["train", "--input", "s3://b/a b"], name="a")
    with running(Dashboard(states=[state])) as server:
        server.is_slow = True
        if there:
            submit(request, JobsApi(server.url), wait_for_room=False)
        else:
            with pytest.raises(UsageError, match="no Ray cluster answers"):
                submit(request, JobsApi(server.url), wait_for_room=False)
        assert len(server.submitted) == 1


def test_a_package_over_the_limit_goes_to_the_store_once(
    dashboard: Dashboard, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "LIMIT", 1000)
    (tmp_path / "large").write_bytes(random.Random(0).randbytes(2000))
    package = Package(root=tmp_path, files={"large": tmp_path / "large"}, sizes={"large": 2000})
    for name in ("one", "two"):
        request = JobRequest(arguments=["train"], name=name, package=package, storage=f"{bucket}/jobs")
        submit(request, JobsApi(dashboard.url), wait_for_room=False)
    [entry] = storage.list_files(f"{bucket}/jobs")
    places = [job["runtime_env"]["working_dir"] for job in dashboard.submitted]  # type: ignore[index]
    assert places == [entry.uri] * 2 and not dashboard.packages
    with zipfile.ZipFile(io.BytesIO(storage.read_bytes(entry.uri))) as archive:
        assert (
            archive.read("large") == (tmp_path / "large").read_bytes() and ".realcustom-job/start" in archive.namelist()
        )
    request = JobRequest(arguments=["train"], name="three", package=package)
    with pytest.raises(UsageError, match="over the limit"):
        submit(request, JobsApi(dashboard.url), wait_for_room=False)


@pytest.mark.parametrize(
    ("asked", "said"), [({"gpus": 1}, "1 GPU.*have 0 GPU"), ({"memory_gib": 9}, "9.0 GiB.*4.0 GiB")]
)
def test_what_no_node_has_is_refused(dashboard: Dashboard, asked: dict[str, float], said: str) -> None:
    request = JobRequest(
        arguments=["train"], name="train-1", gpus=asked.get("gpus"), memory_gib=asked.get("memory_gib")
    )
    with pytest.raises(UsageError, match=f"{said}.*--wait-for-room"):
        submit(request, JobsApi(dashboard.url), wait_for_room=False)
    assert not dashboard.submitted
    submit(request, JobsApi(dashboard.url), wait_for_room=True)
    assert len(dashboard.submitted) == 1


def test_a_cluster_that_may_grow_gets_the_job(dashboard: Dashboard, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    head = {"state": "ALIVE", "resources_total": {"memory": GIB}, "labels": {"ray.io/node-group": "headgroup"}}
    dashboard.nodes = [head]
    request = JobRequest(arguments=["train"], name="train-1", cpus=2)
    submit(request, JobsApi(dashboard.url), wait_for_room=False)
    assert len(dashboard.submitted) == 1
    assert "asks one node for 2 CPU, and the 1 nodes" in caplog.text and "have 0 CPU; it waits" in caplog.text


@pytest.mark.parametrize(
    ("variable", "said"), [("", "wants a token, and none is set"), ("wrong", "wants another token")]
)
def test_a_token_is_asked_for(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, variable: str, said: str) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", variable)
    with pytest.raises(UsageError, match=f"{said}.*RAY_AUTH_TOKEN"):
        JobsApi(dashboard.url).version()


def test_the_token_is_found_where_ray_looks_for_it(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right\n")
    assert JobsApi(dashboard.url).version() == "2.60.0"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"RAY_AUTH_TOKEN_PATH names .*none, and there is no such file"):
        JobsApi(dashboard.url)


def test_another_ray_is_refused() -> None:
    with (
        running(Dashboard(version="2.41.0")) as server,
        pytest.raises(UsageError, match=r"runs Ray 2.41.0 and this machine"),
    ):
        submit(JobRequest(arguments=["train"], name="a"), JobsApi(server.url), wait_for_room=False)


def test_mistakes_of_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as deaf:  # listens, and never speaks HTTP; its port when it is closed: nothing is there
        deaf.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{deaf.getsockname()[1]}"
    for arguments, said in (
        (["jobs", "list"], "which cluster? Give --address"),
        (["jobs", "list", "--address", closed], f"no Ray cluster answers at {closed}"),
        (["jobs", "list", "--address", "ray://head:10001"], "jobs are submitted to the dashboard"),
        (["submit", "--address", closed, "--env", "A", "--", "train"], "--env: 'A' is not NAME=VALUE"),
        (["submit", "--address", closed, "--name", "a/b", "--", "train"], "--name: 'a/b' has other characters"),
        (["submit", "--address", closed, "--secret", "A=hunter2", "--", "train"], "--secret: A is said by where"),
        (
            ["submit", "--address", closed, "--image", "a", "--secret", "A=env:B", "--", "train"],
            "--secret: Ray sets no secrets in the workers of an --image",
        ),
        (
            ["submit", "--address", closed, "--estimate", "2", "--", "serve"],
            "--estimate: of preprocess and train a part",
        ),
        (
            ["submit", "--address", closed, "--image", "a", "--package", "--", "train"],
            "--package: Ray takes none along",
        ),
        (
            ["submit", "--address", closed, "--image", "a", "--storage", "s3://b/c", "--", "train"],
            "--storage is for a pack",
        ),
        (
            ["submit", "--address", closed, "--storage", "/tmp/a", "--", "train"],
            "--storage: each node reads the package",
        ),
        (["submit", "--address", closed, "--", "train"], f"no Ray cluster answers at {closed}"),
        (["submit", "--address", closed, "--", "trian"], "there is no verb 'trian'; did you mean 'train'? There are "),
        (
            ["submit", "--address", closed, "--", "train", "--input", "s3://b/a", "--output=outputs/a"],
            "--output outputs/a: a job works in a folder of Ray's",
        ),
        (
            ["submit", "--address", closed, "--", "inspect", "s3://b/select", "--html", "select.html"],
            "--html select.html: a job works in a folder of Ray's",
        ),
        (
            ["submit", "--address", closed, "--", "generate", "--prompt", "a dog"],
            "generate has no --output: a job works in a folder of Ray's",
        ),
        (
            ["submit", "--address", closed, "--", "--log-level", "debug", "generate", "--prompt", "a dog"],
            "generate has no --output: a job works in a folder of Ray's",
        ),
        (["submit", "--address", closed, "--", "--log-level=debug", "trian"], "there is no verb 'trian'; did you mean"),
        (["submit", "--address", closed, "--", "--log-levl", "debug", "train"], "No such option: --log-levl"),
        (["submit", "--address", closed, "--", "--version"], f"no Ray cluster answers at {closed}"),
        (["submit", "--address", closed, "--", "quickstart"], "quickstart has no --output: a job works"),
        (["submit", "--address", closed, "--", "quickstart", "--output", "/a"], f"no Ray cluster answers at {closed}"),
    ):
        begun = time.monotonic()
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {said}") and error.count("\n") == 1, error
        assert time.monotonic() - begun < 10


def test_addresses() -> None:
    assert find_address("head:8265") == "http://head:8265"
    assert find_address("https://head/ray/") == "https://head/ray"
    assert find_address("auto") == "http://127.0.0.1:8265"
    for given in ("http://head:abc", "http://[::1", "ray://head:10001", "http://"):
        with pytest.raises(UsageError, match=re.escape(f"{given} is not its address: give http://HOST:8265")):
            find_address(given)


def test_a_token_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "schlüssel")
    assert run(["jobs", "list", "--address", "http://127.0.0.1:9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the token (RAY_AUTH_TOKEN") and error.count("\n") == 1


def test_a_dry_run_prints_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert run(["submit", "--address", "head:1", "--dry-run", "--gpus", "1", "--", "train", "--input", "a"]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["address"] == "http://head:1" and job["metadata"]["verb"] == "train --input a"
    assert job["entrypoint_num_gpus"] == 1 and job["package"]["files"] > 300
    arguments = ["--log-level", "debug", "preprocess", "score", "--input", "a", "--output", "s3://b"]
    assert run(["submit", "--address", "head:1", "--dry-run", "--no-package", "--estimate", "2", "--", *arguments]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["metadata"]["verb"] == " ".join([*arguments, "--dry-run", "2"])
    assert job["submission_id"].startswith("preprocess-score-")


def test_secrets_and_images_are_what_ray_takes(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml
    from ray.runtime_env import RuntimeEnv

    jobs = []
    for options in (
        ["--secret", "A=file:/run/a", "--secret", "B=env:C"],
        ["--image", "registry/realcustom:1", "--python", "py"],
    ):
        assert run(["submit", "--address", "head:1", "--dry-run", *options, "--", "train", "--input", "a b"]) == 0
        jobs.append(yaml.safe_load(capsys.readouterr().out))
    secrets, image = jobs
    RuntimeEnv(**{**secrets["runtime_env"], "working_dir": "gcs://_ray_pkg_0.zip"})
    assert secrets["runtime_env"]["env_vars"]["REALCUSTOM_JOB_SECRETS"] == '{"A": "file:/run/a", "B": "env:C"}'
    RuntimeEnv(**image["runtime_env"])
    assert image["runtime_env"]["image_uri"] == "registry/realcustom:1" and image["package"].startswith(
        "nothing: the image"
    )
    assert image["entrypoint"] == """exec py -c "$REALCUSTOM_JOB_CHECK" train --input 'a b'"""


def test_an_image_s_job_checks_it_first(tmp_path: Path) -> None:
    """As in a container: a folder without our package, and the program in a variable."""
    request = JobRequest(arguments=["--version"], name="a", image="i", python=sys.executable)
    environment = {"PATH": os.environ["PATH"], **request.to_ray("")["runtime_env"]["env_vars"]}
    command = ["sh", "-c", request.entrypoint()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("realcustom "), done.stderr
    environment[far_side.WANTED] = '{"python": "2.7", "packages": {}}'
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "there and 2.7 here" in done.stderr and done.stderr.count("\n") == 1


def test_an_estimate_is_the_verb_s_dry_run(caplog: pytest.LogCaptureFixture) -> None:
    score = ["preprocess", "score", "--input", "a", "--hourly-price", "2"]
    assert as_estimate(score, 3) == [*score, "--dry-run", "3"]
    assert not caplog.text
    assert as_estimate(["train", "--input", "a"], 3) == ["train", "--input", "a", "--dry-run"]
    assert "3 has no effect" in caplog.text
