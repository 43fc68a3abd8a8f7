"""A run on records in buckets that is killed -9 at random moments ends with the undisturbed run's bytes and losses."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from realcustom import storage
from realcustom.buckets import Buckets
from realcustom.pipeline.local_cluster import local_cluster
from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints, load_checkpoint, step_of
from realcustom.training.data import DataOrder, split
from realcustom.training.indexing import open_index
from realcustom.training.metrics_file import read_rows
from realcustom.training.settings import TrainSettings
from tests.support.faulty_proxy import FaultyProxy, disturbed
from tests.support.object_store import store_address
from tests.support.training_corpus import encode_pictures, write_pictures
from tests.support.training_kills import (
    VARIED,
    StepLog,
    announce_loss,
    half_written_below,
    logs_of_workers,
    started,
    train_on_ray_with_kills,
    train_with_fewer_and_more,
    train_with_kills,
)
from tests.support.training_runs import METHOD, fit, write_settings
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(params=["bucket", "swift"])  # fixtures: moto's, and one of an OpenStack Swift
def store(request: pytest.FixtureRequest) -> str:
    """URI of an empty bucket."""
    uri: str = request.getfixturevalue(request.param)
    return uri


@pytest.fixture
def proxy(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Before that store, with uploads that take a while; for all processes."""
    with disturbed(store_address(), seed=0, probability=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture(scope="module")
def world(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """With records in aspect-ratio buckets."""
    root = tmp_path_factory.mktemp("buckets")
    write_pictures(root / "pictures", 23, views=True, sizes=((80, 40), (40, 72), (50, 50)))
    rule = Buckets(areas=(48,), step=16)
    caches = encode_pictures(root / "pictures", root, world.base, world.image_encoder, METHOD, rule)
    return SimpleNamespace(**{**vars(world), "caches": caches})


@pytest.fixture
def records(store: str, world: SimpleNamespace) -> str:
    for path in Path(world.caches).glob("*.parquet"):
        storage.write_bytes(f"{store}/records/{path.name}", path.read_bytes())
    return f"{store}/records"


def is_uploading(proxy: FaultyProxy) -> bool:
    """Whether a checkpoint or an adapter is on its way to the store."""
    with proxy.lock:
        return any(count for path, count in proxy.uploading.items() if "/step-" in path)


def check_same(output: str, whole: Path) -> None:
    """The killed run has the undisturbed one's adapter and rows, and nothing half written."""
    assert Store().read(f"{output}/adapter.safetensors") == (whole / "adapter.safetensors").read_bytes()
    kept = ("step", "loss", "val_loss", "val_losses", "grad_norm", "lr", "skipped")
    ours, theirs = (
        [{name: row.get(name) for name in kept} for row in read_rows(place, Store())] for place in (output, str(whole))
    )
    assert ours == theirs
    for uri in list_checkpoints(f"{output}/checkpoints", Store()):
        load_checkpoint(uri, Store())
    if not storage.is_remote(output):
        assert not list(Path(output).rglob(".tmp-*"))


def check_uids(log: StepLog, records: str, settings: TrainSettings, workers: Iterable[int] = (1,)) -> None:
    """Each record that is not held out was trained on once in each epoch, whatever was taken again; in each step by one of
    those numbers of workers.
    """
    index, taken = open_index(records), log.uids()
    held_out, _ = split(index, settings.validation_fraction, settings.validation_records)
    trained = {index.uid(number) for number in np.setdiff1d(np.arange(len(index)), held_out)}
    epoch = DataOrder(index, held_out, settings.batch_size, settings.seed, settings.open_parts).steps_per_epoch
    assert sorted(taken) == [*range(1, settings.steps + 1)]
    for step, shares in taken.items():  # one that was taken again by as many workers had the same shares
        assert len(shares) in {*workers, sum(workers)}, step
    for first in range(1, settings.steps + 2 - epoch, epoch):
        steps = (set[str]().union(*taken[step]) for step in range(first, first + epoch))
        assert Counter(uid for uids in steps for uid in uids) == dict.fromkeys(trained, 1), first


@pytest.mark.parametrize("kills", [4, 20], ids=["four kills", "twenty kills"])
def test_kills_at_random_moments_change_nothing(kills: int, world: SimpleNamespace, tmp_path: Path) -> None:
    config, output = tmp_path / "settings.yaml", tmp_path / "run"
    settings = replace(VARIED, steps=6 * kills)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", world.caches, "--output", str(output), "--config", str(config), "--local"]
    half_written = functools.partial(half_written_below, output)
    killed = train_with_kills(
        arguments, tmp_path / "log", half_written, settings.steps, kills, -(-kills // 4), seed=kills
    )
    assert killed.while_writing >= kills // 6
    fit(world, tmp_path / "whole", settings)
    check_same(str(output), tmp_path / "whole")
    check_uids(StepLog(lambda: [tmp_path / "log"]), world.caches, settings)


def test_kills_of_a_run_on_an_object_store_change_nothing(
    world: SimpleNamespace, tmp_path: Path, proxy: FaultyProxy, store: str, records: str
) -> None:
    config, settings = tmp_path / "settings.yaml", replace(VARIED, steps=120)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", records, "--output", f"{store}/run", "--config", str(config), "--local"]
    proxy.upload_seconds = 0.2
    uploading = functools.partial(is_uploading, proxy)
    killed = train_with_kills(arguments, tmp_path / "log", uploading, settings.steps, 20, 5, seed=2)
    assert killed.while_writing >= 3
    proxy.upload_seconds = 0
    fit(world, tmp_path / "whole", settings)
    check_same(f"{store}/run", tmp_path / "whole")
    check_uids(StepLog(lambda: [tmp_path / "log"]), records, settings)


@pytest.mark.cluster
def test_kills_of_workers_nodes_and_drivers_change_nothing(
    world: SimpleNamespace, tmp_path: Path, proxy: FaultyProxy, store: str, records: str
) -> None:
    """Two workers, each on a node of its own; records and output on an object store."""
    config = tmp_path / "settings.yaml"
    settings = replace(VARIED, steps=150, num_workers=2, batch_size=6, max_failures=-1)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", records, "--output", f"{store}/run", "--config", str(config)]
    proxy.upload_seconds = 0.6  # a node's processes are not killed at one moment
    victims = ["worker", "writing worker", "node", "driver", "writing driver", "writing node", "worker"]
    with local_cluster(3, 1, head_cpus=0) as cluster:
        run = functools.partial(
            train_on_ray_with_kills,
            log=tmp_path / "log",
            half_written=functools.partial(is_uploading, proxy),
            steps=settings.steps,
            cluster=cluster,
            seed=3,
        )
        assert run(arguments, victims=victims).while_writing >= 3
        proxy.upload_seconds = 0
        check_uids(StepLog(functools.partial(logs_of_workers, cluster)), records, settings, workers=[2])
        arguments[3] = str(tmp_path / "whole")
        run(arguments, victims=[])
    check_same(f"{store}/run", tmp_path / "whole")


@pytest.mark.cluster
def test_a_run_goes_on_with_fewer_workers_and_with_more_again(world: SimpleNamespace, tmp_path: Path) -> None:
    """Two, one, two: the batches are the same, and so are the losses but for the order of sums."""
    config = tmp_path / "settings.yaml"
    settings = replace(VARIED, steps=10**6, num_workers=2, min_workers=1, batch_size=6, max_failures=-1)
    settings = replace(settings, val_every=50, checkpoint_every=20)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", world.caches, "--output", str(tmp_path / "run"), "--config", str(config)]
    with local_cluster(3, 1, head_cpus=0) as cluster:
        numbers = train_with_fewer_and_more(arguments, tmp_path / "log", cluster)
        done = step_of(list_checkpoints(str(tmp_path / "run" / "checkpoints"), Store())[-1])
        settings = replace(settings, steps=done)
        check_uids(StepLog(functools.partial(logs_of_workers, cluster)), world.caches, settings, workers=[1, 2])
    assert numbers == [2, 1, 2]
    whole = fit(world, tmp_path / "whole", replace(settings, num_workers=1))
    rows = read_rows(str(tmp_path / "run"), Store())
    assert rows[-1]["step"] == done and len(rows) >= done
    for ours, theirs in zip(rows, whole.curve, strict=False):  # the whole one has a last validation
        assert ours["step"] == theirs["step"]
        for name in ("loss", "val_loss"):
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-5), ours["step"]


@pytest.mark.cluster
def test_a_node_that_will_be_taken_away_leaves_a_checkpoint(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    config, log, checkpoints = tmp_path / "settings.yaml", tmp_path / "log", tmp_path / "run" / "checkpoints"
    settings = replace(VARIED, steps=10**6, num_workers=2, batch_size=6, val_every=0, checkpoint_every=0)
    write_settings(config, world.base, world.image_encoder, settings)
    arguments = ["--input", world.caches, "--output", str(tmp_path / "run"), "--config", str(config)]
    with local_cluster(3, 1, head_cpus=0) as cluster, started(arguments, log, cluster.environment()):
        taken = StepLog(functools.partial(logs_of_workers, cluster))
        wait_for(lambda: taken.last() > 10, 300, log.read_text)
        assert list_checkpoints(str(checkpoints), Store()) == []
        announce_loss(cluster.nodes[-1], cluster)
        wait_for(lambda: list_checkpoints(str(checkpoints), Store()) != [], 60, log.read_text)
