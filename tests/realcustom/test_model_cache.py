"""Model folders from a store: fetched once for all processes, whole or not at all, within a bound."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from realcustom import model_cache, storage
from realcustom.errors import UsageError
from realcustom.identity import check_base, model_identity, resolve_model, split_revision
from realcustom.model_cache import fetch, pin
from tests.support.faulty_proxy import disturbed
from tests.support.object_store import ObjectStore
from tests.support.tiny import TinyModels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("REALCUSTOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "_held", {})
    yield tmp_path / "cache"
    let_go()


def let_go() -> None:
    """As at a process's end."""
    while model_cache._held:
        os.close(model_cache._held.popitem()[1])


def upload(folder: Path, uri: str) -> int:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    for path in paths:
        storage.write_bytes(storage.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())
    return sum(path.stat().st_size for path in paths)


def some_model(tmp_path: Path, content: str = "a") -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_text(content * 1000)
    return folder


def test_a_stored_base_is_the_local_one(bucket: str, tiny_models: TinyModels) -> None:
    base = Path(tiny_models.base)
    uri = f"{bucket}/models/{base.name}"
    upload(base, uri)
    check_base(uri)
    assert model_identity(uri) == model_identity(str(base))
    pinned = resolve_model(uri)
    assert pinned.startswith(f"{uri}@") and resolve_model(pinned) == pinned
    assert model_identity(pinned) == model_identity(str(base))
    name, revision = split_revision(pinned)
    assert revision is None and Path(name, "model_index.json").is_file()


def test_workers_fetch_it_once(object_store: ObjectStore, bucket: str, tmp_path: Path, cache: Path) -> None:
    folder = some_model(tmp_path, "b" * 500)
    uri = f"{bucket}/model"
    size = upload(folder, uri)
    with disturbed((object_store.host, object_store.port), 0, 0.0) as proxy:
        code = "import sys\nfrom realcustom.model_cache import fetch\nprint(fetch(sys.argv[1]))"
        environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.url}
        command = [sys.executable, "-c", code, pin(uri)]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
        places = {worker.communicate(timeout=120)[0].strip() for worker in workers}
        got = sum(count for (path, count) in proxy.sent.items() if "weights" in path or "config" in path)
    assert len(places) == 1 and Path(places.pop(), "config.json").is_file()
    assert size <= got <= 1.01 * size


def test_what_is_no_model_folder_is_said(bucket: str) -> None:
    with pytest.raises(UsageError, match=f"no model folder at {bucket}/nothing"):
        resolve_model(f"{bucket}/nothing")
    storage.write_bytes(f"{bucket}/words/a.txt", b"words")
    with pytest.raises(UsageError, match=f"{bucket}/words is not a base model: it has no unet"):
        check_base(f"{bucket}/words")


def test_one_that_changed_is_not_loaded(bucket: str, tmp_path: Path, cache: Path) -> None:
    uri = f"{bucket}/model"
    upload(some_model(tmp_path), uri)
    pinned = pin(uri)
    upload(some_model(tmp_path, "c"), uri)
    with pytest.raises(UsageError, match="has changed since this run began"):
        fetch(pinned)
    assert Path(fetch(uri), "unet", "weights.safetensors").read_text()[0] == "c"


def test_the_cache_is_bounded(bucket: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("abc"):
        upload(some_model(tmp_path, name), f"{bucket}/{name}")
        os.utime(fetch(f"{bucket}/{name}"), (number, number))
    monkeypatch.setenv("REALCUSTOM_CACHE_GB", str(3500 / 1e9))
    upload(some_model(tmp_path, "d"), f"{bucket}/d")
    fetch(f"{bucket}/d")  # all others are in use by this process: nothing is removed
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 4
    let_go()
    upload(some_model(tmp_path, "e"), f"{bucket}/e")
    fetch(f"{bucket}/e")
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3
    monkeypatch.setenv("REALCUSTOM_CACHE_GB", str(10 / 1e9))
    upload(some_model(tmp_path, "f"), f"{bucket}/f")
    with pytest.raises(UsageError, match="set REALCUSTOM_CACHE_GB higher"):
        fetch(f"{bucket}/f")


def test_what_a_killed_process_left_is_removed(bucket: str, cache: Path) -> None:
    """It is counted by no limit; one that is being fetched stays."""
    for name in ("left", "busy"):
        (cache / f".tmp-{name}" / "model").mkdir(parents=True)
        (cache / f".tmp-{name}" / "model" / "weights").write_bytes(b"x" * 1000)
    storage.write_bytes(f"{bucket}/model/config.json", b"{}")
    with (cache / "busy.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fetch(f"{bucket}/model")
    assert [path.name for path in cache.glob(".tmp-*")] == [".tmp-busy"]
