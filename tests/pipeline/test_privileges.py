"""What a run needs to be allowed, as docs/storage.md lists it: with these actions it passes, without one it says which."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import pytest
import yaml
from botocore.exceptions import ParamValidationError

from realcustom import storage
from realcustom.config import to_dict
from realcustom.pipeline.cli.main import run
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.settings import MethodSettings
from realcustom.sprites import zoo_path
from realcustom.store import AccessDenied, Store
from tests.support.chaos_checks import chaos_settings
from tests.support.corpora import write_shards
from tests.support.faulty_proxy import FaultyProxy, Trouble
from tests.support.loopback import running
from tests.support.object_store import ObjectStore
from tests.support.suites import write_suite
from tests.support.tiny import TinyModels
from tests.support.training_corpus import write_pictures
from tests.support.training_runs import SETTINGS, write_settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "storage.md"
LISTED = re.findall(r"^\| `(s3:\w+)` \|", PAGE.read_text(), re.MULTILINE)
CHAIN_NAMES = [stage.name for stage in CHAIN]
NEEDED = [action for action in LISTED if action != "s3:AbortMultipartUpload"]  # of writing that fails


class Guarded(FaultyProxy):
    """Lets only some actions through, by the names that policies have for them."""

    def __init__(self, upstream: tuple[str, int], allowed: set[str]) -> None:
        super().__init__(upstream, 0, 0.0)
        self.allowed = allowed

    def trouble(self, method: str, path: str) -> Trouble | None:
        return None if action_of(method, path) in self.allowed else Trouble.DENIED


class ByPolicy(FaultyProxy):
    """Lets through what a policy allows, and keeps what it does not."""

    def __init__(self, upstream: tuple[str, int], name: str, **places: str) -> None:
        super().__init__(upstream, 0, 0.0)
        text = (ROOT / "infra" / "store" / f"{name}.json").read_text()
        for word, place in places.items():
            text = text.replace(word.upper(), place)
        self.statements = json.loads(text)["Statement"]
        self.denied: list[str] = []

    def trouble(self, method: str, path: str) -> Trouble | None:
        action, resource = action_of(method, path), unquote(urlsplit(path).path.strip("/"))
        if action == "s3:ListBucket":
            resource = resource.partition("/")[0]
        for one in self.statements:
            patterns = (pattern.removeprefix("arn:aws:s3:::") for pattern in one["Resource"])
            if action in one["Action"] and any(fnmatch.fnmatchcase(resource, pattern) for pattern in patterns):
                return None
        self.denied.append(f"{action} {resource}")
        return Trouble.DENIED


def action_of(method: str, path: str) -> str:
    parts = urlsplit(path)
    query, key = parse_qs(parts.query, keep_blank_values=True), parts.path.strip("/").partition("/")[2]
    if not key and method in ("GET", "HEAD") and not set(query) & {"acl", "policy", "versioning"}:
        return "s3:ListBucket"
    if method == "DELETE" and "uploadId" in query:
        return "s3:AbortMultipartUpload"
    if method == "POST" and "delete" in query:
        return "s3:DeleteObject"
    if not key:
        return f"{method} of a bucket"
    return {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}.get(method, "s3:PutObject")


def test_the_page_lists_what_there_is_to_allow() -> None:
    assert len(LISTED) == len(set(LISTED)) == 5
    for name in ("stage", "run"):
        policy = json.loads((ROOT / "infra" / "store" / f"{name}.json").read_text())
        assert sorted(action for one in policy["Statement"] for action in one["Action"]) == sorted(LISTED)


def test_a_store_takes_the_lifecycle_rule(bucket: str) -> None:
    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    rules = json.loads((ROOT / "infra" / "store" / "lifecycle.json").read_text())
    client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=rules)
    assert client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"] == rules["Rules"]
    rules["Rules"][0]["AbortIncompleteUpload"] = rules["Rules"][0].pop("AbortIncompleteMultipartUpload")
    with pytest.raises(ParamValidationError, match="AbortIncompleteUpload"):
        client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=rules)


@pytest.mark.parametrize("missing", [None, *NEEDED])
def test_a_run_passes_with_these_actions_and_names_the_one_that_it_lacks(
    missing: str | None,
    object_store: ObjectStore,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Twice, the second time with one shard more and one less: units that are out of date are removed."""
    for number, shard in enumerate(sorted(write_shards(tmp_path, 3, 4).iterdir())):
        storage.write_bytes(f"{bucket}/raw/{shard.name}", shard.read_bytes())
        if number == 1:
            verb = ["preprocess", "ingest", "--local", "--input", f"{bucket}/raw", "--output", f"{bucket}/out"]
            if missing is not None:
                break
            assert run(verb) == 0
            storage.delete(f"{bucket}/raw/shard-00000.tar")
    with running(Guarded((object_store.host, object_store.port), set(LISTED) - {missing})) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        status = run(verb)
    said = capsys.readouterr().err
    if missing is None:
        assert status == 0, said
        return
    assert status == 2 and said.count("\n") == 1, said
    assert "access denied" in said and said.endswith(f"({missing})\n"), said


class WithoutParts(Guarded):
    """Takes no part of an upload in parts."""

    def trouble(self, method: str, path: str) -> Trouble | None:
        return Trouble.DENIED if "partNumber" in path else super().trouble(method, path)


@pytest.mark.parametrize("may_abort", [True, False])
def test_a_large_output_that_cannot_be_written_is_taken_back_or_left_to_the_store_s_rule(
    may_abort: bool, object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either way it is said why it was not written."""
    monkeypatch.setattr(storage, "LARGE", 8 * 2**20)
    allowed = set(LISTED) - (set() if may_abort else {"s3:AbortMultipartUpload"})
    with (
        running(WithoutParts((object_store.host, object_store.port), allowed)) as proxy,
        monkeypatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(AccessDenied, match=r"access denied.*\(s3:PutObject\)"):
            Store().write(f"{bucket}/a", bytes(20 * 2**20))
    left = boto3.client("s3").list_multipart_uploads(Bucket=bucket.removeprefix("s3://")).get("Uploads", [])
    assert [upload["Key"] for upload in left] == ([] if may_abort else ["a"])


@pytest.fixture(scope="module")
def inputs(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each program reads: the stages' outputs, records, a suite; and its settings."""
    folder = tmp_path_factory.mktemp("inputs")
    settings = chaos_settings(folder / "models")
    source = str(write_shards(folder / "raw", 2, 2))
    for stage in CHAIN:
        result = run_stage(
            stage, source, str(folder / "there"), settings, method=MethodSettings(), executor=InProcess()
        )
        source = result.directory
    (folder / "preprocess.yaml").write_text(yaml.safe_dump({"preprocess": to_dict(settings)}))
    write_pictures(folder / "there" / "records", 12)
    short = replace(SETTINGS, steps=3, warmup=0, val_every=3, checkpoint_every=1, keep_checkpoints=1, loggers=())
    write_settings(folder / "train.yaml", tiny_models.base, tiny_models.image_encoder, short)
    suite = write_suite(folder / "there", subjects=2)
    lines = ["subject,class", *(f"{name},dog" for name in sorted(suite.scenes))]  # a word that the tiny models know
    (suite.folder / "subjects.csv").write_text("\n".join(lines) + "\n")
    suite.prompts.write_text("a {} on grass\n")
    storage.write_bytes(str(folder / "there" / "adapter.safetensors"), Path(tiny_models.adapter).read_bytes())
    return folder


def verb_of(program: str, inputs: Path, there: str, tiny_models: TinyModels) -> list[str]:
    if program == "train":
        return [
            *("train", "--local", "--input", f"{there}/records", "--output", f"{there}/run"),
            *("--config", str(inputs / "train.yaml")),
        ]
    if program == "evaluate":
        return [
            *("evaluate", "--suite", "own", "--subjects", f"{there}/subjects", "--prompts", f"{there}/prompts.txt"),
            *("--adapter", f"a={there}/adapter.safetensors", "--output", f"{there}/evaluation", "--steps", "2"),
            *("--base", tiny_models.base, "--image-encoder", tiny_models.image_encoder),
            *("--metric", f"diversity@{zoo_path('image_encoder')}", "--set", "evaluate.images_per_prompt=2"),
        ]
    before = CHAIN_NAMES[CHAIN_NAMES.index(program) - 1]
    [source] = [path.name for path in (inputs / "there").glob(f"{before}@*")]
    return [
        *("preprocess", program, "--local", "--input", f"{there}/{source}", "--output", f"{there}/out"),
        *("--config", str(inputs / "preprocess.yaml")),
    ]


@pytest.mark.parametrize(
    "program",
    ["score", *(pytest.param(name, marks=pytest.mark.slow) for name in (*CHAIN_NAMES[2:], "train", "evaluate"))],
)
def test_every_program_passes_by_the_policy_of_the_page(
    program: str,
    inputs: Path,
    tiny_models: TinyModels,
    object_store: ObjectStore,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each reads its inputs alone, and writes nothing outside its own place."""
    for path in (inputs / "there").rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/in/{path.relative_to(inputs / 'there').as_posix()}", path.read_bytes())
    verb = [
        word.replace(f"{bucket}/in/out", f"{bucket}/out")
        for word in verb_of(program, inputs, f"{bucket}/in", tiny_models)
    ]
    name, output = (
        ("run", {"train": "in/run", "evaluate": "in/evaluation"}[program])
        if program in ("train", "evaluate")
        else ("stage", "out")
    )
    place = bucket.removeprefix("s3://")
    with running(
        ByPolicy((object_store.host, object_store.port), name, bucket=place, input="in/", output=output, stage=program)
    ) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert run(verb) == 0
    assert proxy.denied == []


@pytest.mark.slow
@pytest.mark.parametrize("missing", [None, *NEEDED])
@pytest.mark.parametrize("program", [*CHAIN_NAMES[1:], "train", "evaluate"])
def test_every_program_names_the_action_that_it_lacks(
    program: str,
    missing: str | None,
    inputs: Path,
    tiny_models: TinyModels,
    object_store: ObjectStore,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in (inputs / "there").rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{bucket}/{path.relative_to(inputs / 'there').as_posix()}", path.read_bytes())
    verb = verb_of(program, inputs, bucket, tiny_models)
    with running(Guarded((object_store.host, object_store.port), set(LISTED) - {missing})) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        status = run(verb)
    said = capsys.readouterr().err
    if missing is None:
        assert status == 0, said
        return
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in said, said
    assert "access denied" in errors[0] and errors[0].endswith(f"({missing})"), said
