"""What a run needs to be allowed, as docs/storage.md lists it: with these actions it passes, without one it says which."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from realcustom import storage
from realcustom.pipeline.cli.main import run
from tests.support.corpora import write_shards
from tests.support.faulty_proxy import FaultyProxy, Trouble
from tests.support.loopback import running
from tests.support.object_store import ObjectStore

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
LISTED = re.findall(r"^\| `(s3:\w+)` \|", PAGE.read_text(), re.MULTILINE)
NEEDED = [action for action in LISTED if action != "s3:AbortMultipartUpload"]  # of writing that fails


class Guarded(FaultyProxy):
    """Lets only some actions through, by the names that policies have for them."""

    def __init__(self, upstream: tuple[str, int], allowed: set[str]) -> None:
        super().__init__(upstream, 0, 0.0)
        self.allowed = allowed

    def trouble(self, method: str, path: str) -> Trouble | None:
        return None if action_of(method, path) in self.allowed else Trouble.DENIED


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
