"""Copies over a corpus: what is planted is found and nothing else, however the corpus is cut, listed or searched."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from realcustom.preprocessing import tables
from realcustom.preprocessing.catalogue import SELECT
from realcustom.preprocessing.hashes import signature
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.select import components, near, partitions
from realcustom.preprocessing.select.compact import COMPACT, compacted, hashes_of, restored
from realcustom.preprocessing.select.duplicates import (
    SIGNATURES,
    Twins,
    collapse,
    find_edges,
    priorities_of,
    signatures_of,
)
from realcustom.preprocessing.select.survivors import Copies, resolve
from realcustom.preprocessing.settings import ExecutionSettings, PreprocessSettings, SelectSettings
from tests.support.corpora import snapshot
from tests.support.signatures import flipped, originals, planted, scored, write_scored
from tests.support.stages import excluded_of


def select(source: Path, output: Path, **settings: object) -> StageResult:
    made = PreprocessSettings(select=SelectSettings(**settings))  # type: ignore[arg-type]
    return run_stage(SELECT, str(source), str(output), made, executor=InProcess())


def found(result: StageResult) -> dict[str, str]:
    """Copy's key -> survivor's key."""
    return {key: row["message"].removeprefix("of ") for key, row in excluded_of(result).items()}


@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"partition_rows": 170},
        {"exact_search_rows": 100, "partition_rows": 250},  # beyond the exact search
    ],
)
def test_planted_copies_are_found_and_nothing_else(
    tmp_path: Path, cut: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "UNITS_PER_BLOCK", 3)
    table, pairs = planted(800, 200)
    source = write_scored(tmp_path / "scored", table, 100)
    result = select(source, tmp_path / "out", **cut)
    assert found(result) == pairs
    assert result.report["dropped"] == {"near_duplicate": 200} and result.report["clusters"] == {"2": 200}
    assert "sets of 2 copies" in (Path(result.directory) / "report.html").read_text()
    again = snapshot(result.directory)
    assert select(source, tmp_path / "out", **cut).units_run == 0 and snapshot(result.directory) == again


@pytest.mark.parametrize(("rows_together", "shuffles"), [(22, 2), (1000, 1)])
def test_blocks_that_are_shuffled_together_lead_to_the_copies_of_the_exact_search(
    rows_together: int, shuffles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "UNITS_PER_BLOCK", 1)
    table, pairs = planted(30, 10, seed=7)
    source = write_scored(tmp_path / "scored", table, 5)
    exact = select(source, tmp_path / "exact")
    result = select(source, tmp_path / "out", exact_search_rows=1, partition_rows=rows_together)
    assert len(list(Path(result.directory).glob("global/shuffle/*.parquet"))) == 3 * shuffles  # tables, of 6 blocks
    assert found(result) == found(exact) == pairs
    assert result.report["clusters"] == exact.report["clusters"] == {"2": 10}


def test_signatures_come_back_as_they_were_from_fewer_bytes() -> None:
    rows = []
    for path in sorted((Path(__file__).parents[1] / "data/photos").glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        for number in range(8):
            found = signature(image.crop((0, 0, image.width - 9 * number, image.height - 5 * number)))
            rows.append({"rank": bytes(16), "sha256": bytes(32), "uid": "u", "key": "k", **vars(found)})
    whole = pa.Table.from_pylist(rows, schema=SIGNATURES)
    small = tables.to_parquet_groups([compacted(whole)], COMPACT)
    back = tables.from_parquet(small)
    compared = whole.select(["rank", "sha256", "phashes", "long_hashes", "color"])
    assert restored(back).equals(compared) and restored(whole).equals(compared)
    nothing = whole.slice(0, 0)
    assert len(restored(compacted(nothing))) == len(hashes_of(nothing)) == 0
    assert len(small) < 0.85 * len(tables.to_parquet_groups([compared], compared.schema))


def test_partitions_grow_with_the_corpus_so_that_the_driver_can_know_of_their_parts() -> None:
    settings = SelectSettings()
    blocks = [partitions.Part(uri="", content="", group=0, rows=640_000)] * 3126  # two billion
    fitted = partitions.fitted(blocks, settings)
    tables = partitions.bit_tables(2 * 10**9, fitted)
    units = partitions.shuffle_units(blocks, tables, fitted.partition_rows)
    assert fitted.partition_rows == 4 * settings.partition_rows and len(units) == len(tables) * 3126
    assert sum(2**table.width for table in tables) * 3126 < 20_000_000
    assert partitions.fitted(blocks[:10], settings) == settings


@pytest.mark.parametrize("partition_rows", [8, 1000])
def test_chains_of_copies_beyond_the_exact_search(
    partition_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "UNITS_PER_BLOCK", 2)
    monkeypatch.setattr(near, "_HELD", 20)  # so that what is connected is looked at again and again
    source = write_scored(tmp_path / "scored", chains(160, 2), 20)
    exact = select(source, tmp_path / "exact")
    result = select(source, tmp_path / "out", exact_search_rows=1, partition_rows=partition_rows)
    assert found(result) == found(exact) and len(found(exact)) > 40
    gathered = sum(len(tables.from_parquet(path.read_bytes())) for path in result_files(result, "gather"))
    apart = 160 - len({key for pair in found(exact).items() for key in pair})
    assert 40 < gathered <= 160 - apart // 2  # once each, and most of those that are no copies not at all
    everything = select(source, tmp_path / "none", exact_search_rows=1, near_duplicate_radius=None)
    assert (
        everything.report["dropped"] == select(source, tmp_path / "all", near_duplicate_radius=None).report["dropped"]
    )


def result_files(result: StageResult, step: str) -> list[Path]:
    return sorted(Path(result.directory).glob(f"global/{step}/*.parquet"))


def test_what_hashes_connect_is_in_one_group() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 400, (300, 2))
    links = [
        pa.table({"number": some[:, 0], "of": some[:, 1]}, schema=components.LINKS) for some in np.array_split(pairs, 7)
    ]
    numbers, groups = components.groups_of(links, 30)
    assert numbers.tolist() == sorted(set(pairs.ravel().tolist()))
    group = dict(zip(numbers.tolist(), groups.tolist(), strict=True))
    assert all(group[one] == group[other] for one, other in pairs.tolist())
    roots = np.arange(400)
    components.connect(roots, *pairs.T)
    sizes = np.bincount(roots)[roots[numbers]]  # of each picture's component
    counts = np.bincount(groups)
    assert (counts > 0).all() and counts.max() <= max(30, sizes.max()) and len(counts) > 3
    nothing, of = components.groups_of([components.LINKS.empty_table()], 30)
    assert len(nothing) == len(of) == 0


@pytest.mark.parametrize("name", ["read_columns", "read_some_groups"])
def test_a_passing_error_of_the_search_is_tried_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failed = getattr(tables, name), list[str]()

    def failing_once(uri: str, columns: list[str], *needed: object) -> pa.Table:
        if columns != ["uid"] and not failed:  # the uids are looked at before the search
            failed.append(uri)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(uri, columns, *needed)

    monkeypatch.setattr(tables, name, failing_once)
    table, pairs = planted(60, 20, seed=6)
    settings = PreprocessSettings(execution=ExecutionSettings(backoff=0.0))
    source = write_scored(tmp_path / "scored", table, 30)
    assert found(run_stage(SELECT, str(source), str(tmp_path / "out"), settings, executor=InProcess())) == pairs
    assert failed


def test_a_corpus_in_another_order_gives_the_same_survivors(tmp_path: Path) -> None:
    table, pairs = planted(300, 100, seed=3)
    order = np.random.default_rng(1).permutation(300)
    shuffled = select(write_scored(tmp_path / "scored", table.take(order), 77), tmp_path / "out", partition_rows=60)
    assert found(shuffled) == pairs


def test_what_did_not_change_is_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "UNITS_PER_BLOCK", 1)
    table, _ = planted(300, 60, seed=4)
    source = write_scored(tmp_path / "scored", table.slice(0, 200), 100)
    first = select(source, tmp_path / "out", partition_rows=100)
    steps = Path(first.directory) / "global"
    kept = {
        path: path.stat().st_mtime_ns for path in steps.rglob("*/manifests/*.json") if "duplicates" not in str(path)
    }
    assert len(kept) == 2 + 3
    (source / "part-00002.parquet").write_bytes(tables.to_parquet(table.slice(200, 100)))
    (steps / "pairs/pair-00000-00001.parquet").unlink()  # somebody removed it
    second = select(source, tmp_path / "out", partition_rows=100)
    untouched = {path for path, time in kept.items() if path.stat().st_mtime_ns == time} if kept else set()
    assert {path.name.split(".")[0] for path in kept} - {path.name.split(".")[0] for path in untouched} == {
        "pair-00000-00001"
    }
    whole = write_scored(tmp_path / "whole", table, 100)
    fresh = select(whole, tmp_path / "fresh", partition_rows=100)
    assert {name: data for name, data in snapshot(second.directory).items() if name.startswith("aside/")} == {
        name: data for name, data in snapshot(fresh.directory).items() if name.startswith("aside/")
    }


@pytest.mark.parametrize("change", ["part-00000", "part-00002", "a-new-part"])
def test_units_that_come_or_go_leave_what_a_fresh_run_would(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "UNITS_PER_BLOCK", 2)
    table, _ = planted(250, 80, seed=8)
    source = write_scored(tmp_path / "scored", table.slice(0, 200), 40)
    select(source, tmp_path / "out", partition_rows=60)
    place = source / f"{change}.parquet"
    if place.exists():
        place.unlink()
    else:
        place.write_bytes(tables.to_parquet(table.slice(200)))  # it comes first: all others have new numbers
    again, fresh = (select(source, tmp_path / name, partition_rows=60) for name in ("out", "fresh"))
    assert again.report == fresh.report and again.report["dropped"]["near_duplicate"] > 20
    left, right = (snapshot(result.directory) for result in (again, fresh))
    assert {name: data for name, data in left.items() if not name.startswith("global/")} == {
        name: data for name, data in right.items() if not name.startswith("global/")
    }
    assert select(source, tmp_path / "out", partition_rows=60).units_run == 0


def chains(count: int, seed: int) -> pa.Table:
    """Pictures among which copies of copies are not all copies of each other; some are equal in every byte."""
    rng = np.random.default_rng(seed)
    pictures = originals(count, rng)
    for index in range(max(1, count // 4), count):
        other = rng.integers(0, index)
        changed = rng.random() < 0.7
        for name, most in (("short", 5), ("long", 30)):
            value = pictures[name][other : other + 1].reshape(1, -1)
            if changed:
                value = flipped(value, rng.integers(0, most + 1, 1), rng)
            pictures[name][index] = value.reshape(pictures[name][index].shape)
        pictures["color"][index] = pictures["color"][other]
    table = scored(pictures, better=rng.random(count) < 0.5)
    contents = [f"{phash!r}"[:32].ljust(32).encode() for phash in table["phashes"].to_pylist()]
    return table.set_column(2, table.schema.field("sha256"), pa.array(contents, pa.binary(32)))


def numbered(table: pa.Table, numbers: Sequence[int] | None = None) -> pa.Table:
    """Signatures of pictures with these numbers; else those of their rows."""
    return signatures_of(table, np.arange(table.num_rows) if numbers is None else np.array(numbers))


def numbers_in(priorities: pa.ChunkedArray) -> list[int]:
    numbers: list[int] = priorities_of(priorities)[:, 1].tolist()
    return numbers


def pairs_in(edges: pa.Table) -> list[tuple[int, int]]:
    """Numbers of the worse and the better ones."""
    return list(zip(numbers_in(edges["rank"]), numbers_in(edges["better"]), strict=True))


def survivors(copies: Copies) -> dict[int, int]:
    return dict(zip(copies.numbers.tolist(), copies.survivors.tolist(), strict=True))


def reference(table: pa.Table, settings: SelectSettings) -> dict[int, int]:
    """The plain rule: best first, a picture is dropped if it is a copy of one that was kept."""
    marked = numbered(table)
    order = sorted(range(table.num_rows), key=marked["rank"].to_pylist().__getitem__)
    pairs = set(pairs_in(find_edges(marked, None, settings)))
    kept, dropped = list[int](), dict[int, int]()
    for index in order:
        survivor = next((other for other in kept if (index, other) in pairs), None)
        if survivor is None:
            kept.append(index)
        else:
            dropped[index] = survivor
    return dropped


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("exact", [True, False])
def test_survivors_are_those_of_the_plain_rule(seed: int, exact: bool) -> None:
    settings = SelectSettings(exact_duplicates=exact)
    table = chains(160, seed)
    expected = reference(table, settings)
    assert 40 < len(expected) < 159 and not set(expected) & set(expected.values())
    order = list(range(160))
    random.Random(seed).shuffle(order)
    whole = numbered(table.take(order), order)
    parts, twins = zip(*(collapse(whole.slice(start, 50), settings) for start in range(0, 160, 50)), strict=True)
    edges = [find_edges(a, None if a is b else b, settings) for i, a in enumerate(parts) for b in parts[i:]]
    random.Random(seed).shuffle(edges)
    copies = resolve(edges, twins)
    assert survivors(copies) == expected and copies.numbers.tolist() == sorted(expected)
    content = table["sha256"].to_pylist()
    equal = [content[number] == content[survivor] for number, survivor in sorted(expected.items())]
    assert copies.equal.tolist() == equal and any(equal) and sum(len(some.numbers) for some in twins) > 0


def test_pairs_found_many_times_are_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = numbered(chains(160, 1))
    edges = find_edges(table, None, SelectSettings())
    once = resolve([edges], [])
    monkeypatch.setattr(
        "realcustom.preprocessing.select.survivors._FEW", 10
    )  # so that equal rows are looked for again and again
    monkeypatch.setattr("realcustom.preprocessing.select.survivors._CHUNK", 7)
    pieces = [edges.slice(start, 9) for start in range(0, len(edges), 9)]
    again = resolve(pieces * 3, [])
    assert survivors(again) == survivors(once) and again.equal.tolist() == once.equal.tolist()
    assert resolve([], []).cluster_sizes() == {}


def test_only_exact_duplicates(tmp_path: Path) -> None:
    table = chains(80, 5)
    result = select(
        write_scored(tmp_path / "scored", table, 30), tmp_path / "out", near_duplicate_radius=None, partition_rows=30
    )
    contents = table["sha256"].to_pylist()
    assert result.report["dropped"] == {"exact_duplicate": 80 - len(set(contents))}
    kept = select(tmp_path / "scored", tmp_path / "out", near_duplicate_radius=None, exact_duplicates=False)
    assert kept.report["kept"] == 80 and kept.report["clusters"] == {}


def test_many_equal_pictures_are_not_compared_with_each_other() -> None:
    rng = np.random.default_rng(0)
    one = originals(1, rng)
    table = scored({name: np.repeat(values, 5000, axis=0) for name, values in one.items()})
    best, twins = collapse(numbered(table), SelectSettings())
    assert best["uid"].to_pylist() == table["uid"].to_pylist()[:1]
    assert twins.numbers.tolist() == list(range(1, 5000)) and set(twins.of.tolist()) == {0}


def test_a_dense_cluster_leaves_few_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    one = originals(1, rng)
    cluster = {name: np.repeat(values, 300, axis=0) for name, values in one.items()}
    cluster["long"][:, 0] = flipped(cluster["long"][:, 0], rng.integers(0, 15, 300), rng)
    table = numbered(scored(cluster))
    edges = find_edges(table, None, SelectSettings())
    assert edges.num_rows == sum(min(64, number) for number in range(300))
    assert pairs_in(edges) == [(place, better) for place in range(300) for better in range(min(64, place))]
    monkeypatch.setattr(near, "_HELD", 100)  # so that pairs are trimmed again and again
    assert find_edges(table, None, SelectSettings()).equals(edges)
    left, right = table.slice(0, 150), table.slice(150)
    apart = [(place, better) for place in range(150, 300) for better in range(64)]
    assert pairs_in(find_edges(left, right, SelectSettings())) == apart
    assert set(survivors(resolve([edges], [])).values()) == {0}


def test_a_twin_shares_the_fate_of_its_better() -> None:
    table = numbered(chains(2, 0))
    edge = find_edges(table, None, SelectSettings(near_duplicate_bits=128, near_duplicate_radius=16))
    ((worse, better),) = pairs_in(edge)
    twins = Twins(numbers=np.array([7, 9]), of=np.array([worse, better]), equal=np.array([True, True]))
    copies = resolve([edge], [twins])
    assert survivors(copies) == {worse: better, 7: better, 9: better}
    equal = edge["equal"][0].as_py()
    assert copies.equal.tolist() == [equal, equal, True] and copies.cluster_sizes() == {"4": 1}
    assert survivors(resolve([], [twins])) == {7: worse, 9: better}


def test_a_row_without_a_hash_is_refused(tmp_path: Path) -> None:
    table = planted(10, 0)[0]
    lacking = pa.array([None, *table["phashes"].to_pylist()[1:]], table.schema.field("phashes").type)
    table = table.set_column(table.schema.get_field_index("phashes"), "phashes", lacking)
    source = write_scored(tmp_path / "scored", table, 10)
    with pytest.raises(ValueError, match=r"part-00000\.parquet: rows without phashes, .*: 1"):
        select(source, tmp_path / "out")


def test_a_table_that_is_no_scored_one_is_named(tmp_path: Path) -> None:
    table = planted(20, 0)[0]
    source = write_scored(tmp_path / "scored", table, 10)
    (source / "part-00001.parquet").write_bytes(tables.to_parquet(table.slice(10).drop_columns("image_bytes")))
    with pytest.raises(ValueError, match=r"part-00001\.parquet: the column 'image_bytes' is missing"):
        select(source, tmp_path / "out")
    uids = pa.array([None, *table["uid"].to_pylist()[11:]], pa.string())
    (source / "part-00001.parquet").write_bytes(tables.to_parquet(table.slice(10).set_column(0, "uid", uids)))
    with pytest.raises(ValueError, match=r"part-00001\.parquet: rows without uid, .*: 1"):
        select(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())  # nothing of what was refused


def test_what_a_removal_or_somebody_left_or_took_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "UNITS_PER_BLOCK", 1)
    table, pairs = planted(200, 50, seed=5)
    source = write_scored(tmp_path / "scored", table, 50)
    first = select(source, tmp_path / "out", partition_rows=60)
    (Path(first.directory) / "global/clusters.json").unlink()
    stray = Path(first.directory) / "global/duplicates/block-00009.parquet"
    stray.write_bytes(b"")
    again = select(source, tmp_path / "out", partition_rows=60)
    assert again.units_run == 0 and again.report == first.report and not stray.exists()
    assert found(again) == pairs


@pytest.mark.slow
def test_among_100_000_rows_every_planted_copy_is_found_and_nothing_else(tmp_path: Path) -> None:
    table, pairs = planted(100_000, 5_000, seed=9)
    result = select(write_scored(tmp_path / "scored", table, 1000), tmp_path / "out", partition_rows=50_000)
    assert found(result) == pairs
