"""Stage `views`: mutual nearest neighbours within a word, whatever the partitions; written into the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom import record
from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.catalogue import CATALOGUE, CHAIN, VIEWS, chain
from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind
from realcustom.preprocessing.pictures import decode
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import PreprocessSettings, ViewsSettings
from realcustom.preprocessing.views import search
from realcustom.preprocessing.views.neighbours import Rows, cosines_of, mutual_neighbours, quantised
from realcustom.record import record_uid
from realcustom.sprites import ZOO
from realcustom.store import Store
from tests.support.corpora import picture, png, snapshot
from tests.support.tiny import tiny_siglip_dino

LIMITS = ViewsSettings(neighbours=2, min_similarity=0.5, max_similarity=0.97)
ENCODER = str(ZOO / "image_encoder")


def make_rows(number: int = 120) -> Rows:
    """Rows of a few words and pictures, some nearly equal."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(15, 8))
    vectors = centres[rng.integers(15, size=number)] + rng.normal(size=(number, 8)) * rng.uniform(0, 0.6, (number, 1))
    vectors[40:44] = vectors[40]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Rows(
        numbers=np.sort(rng.choice(10**12, number, replace=False)),
        words=rng.integers(3, size=number),
        parents=rng.integers(number // 2, size=number),
        vectors=quantised(vectors).astype(np.float32),
    )


def pieces(rows: Rows, sizes: list[int]) -> list[Callable[[], Rows]]:
    """The same rows in partitions."""
    found: list[Callable[[], Rows]] = []
    start = 0
    for size in sizes:
        cut = slice(start, start + size)
        found.append(lambda cut=cut: rows.part(cut))  # type: ignore[misc]
        start += size
    assert start == len(rows.numbers)
    return found


def expected(rows: Rows, settings: ViewsSettings) -> set[tuple[int, int]]:
    """The links by a plain search."""
    vectors = rows.vectors.astype(float) / np.linalg.norm(rows.vectors.astype(float), axis=1, keepdims=True)
    cosines = (vectors @ vectors.T).round(4)
    nearest: dict[int, list[int]] = {}
    for i in range(len(rows.numbers)):
        fitting = [
            j
            for j in range(len(rows.numbers))
            if rows.words[i] == rows.words[j]
            and rows.parents[i] != rows.parents[j]
            and settings.min_similarity <= cosines[i, j] < settings.max_similarity
        ]
        nearest[i] = sorted(fitting, key=lambda j: (-cosines[i, j], j))[: settings.neighbours]
    numbers = rows.numbers.tolist()
    return {(numbers[i], numbers[j]) for i in nearest for j in nearest[i] if i in nearest[j]}


@pytest.mark.parametrize("sizes", [[120], [60, 60], [1, 2, 50, 67], [40] * 3], ids=str)
def test_links_are_mutual_nearest_neighbours_however_the_rows_are_cut(sizes: list[int]) -> None:
    rows = make_rows()
    links = mutual_neighbours(pieces(rows, sizes), LIMITS)
    found = set(zip(links.numbers.tolist(), links.others.tolist(), strict=True))
    assert found == expected(rows, LIMITS) and len(found) > 40
    assert len(found) == len(links.numbers) and all((other, one) in found for one, other in found)
    assert links.numbers.tolist() == sorted(links.numbers.tolist())


def test_copies_other_words_and_the_same_picture_are_not_linked() -> None:
    vectors = np.array([[1, 0], [1, 0.001], [0.9, 0.3], [0.9, 0.3], [0.88, 0.35]], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = Rows(
        numbers=np.arange(5),
        words=np.array([7, 7, 7, 8, 7]),
        parents=np.array([0, 1, 2, 3, 2]),
        vectors=quantised(vectors).astype(np.float32),
    )
    links = mutual_neighbours(pieces(rows, [5]), replace(LIMITS, max_similarity=0.99))
    pairs = set(zip(links.numbers.tolist(), links.others.tolist(), strict=True))
    assert pairs and not pairs & {(0, 1), (2, 3), (2, 4)} and all(3 not in pair for pair in pairs)


def test_cosines_do_not_depend_on_the_order_in_which_a_machine_adds() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 1536)) + 2 * rng.normal(size=1536)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = quantised(vectors).astype(np.float32)
    numbers = np.arange(len(vectors))
    rows = Rows(numbers=numbers, words=numbers, parents=numbers, vectors=whole)
    found = cosines_of(rows, rows)
    assert np.abs(found / 10**4 - vectors @ vectors.T).max() < 0.0008 and (np.diag(found) == 10**4).all()
    for _ in range(2):
        mixed = replace(rows, vectors=np.ascontiguousarray(whole[:, rng.permutation(1536)]))
        assert np.array_equal(cosines_of(mixed, mixed), found)
    assert np.array_equal(cosines_of(replace(rows, vectors=whole[:7]), rows), found[:7])


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of records of drawn crops: of each subject two pictures that differ a little, and a copy of one."""
    folder = tmp_path_factory.mktemp("records")
    rows = []
    for subject in range(4):
        base = np.asarray(picture(subject, (32, 32)).convert("RGB")).astype(int)
        for view in range(3):
            shade = 0 if view == 2 else 25 * view
            crop = np.clip(base + shade, 0, 255).astype(np.uint8)
            rows.append((subject, view, crop))
    for name, some in (("a", rows[::2]), ("b", rows[1::2])):
        parents = [f"{subject}-{view}" for subject, view, _ in some]
        columns = {
            "uid": [record_uid(parent, "toy", 0) for parent in parents],
            "parent_uid": parents,
            "sha256": [b"0" * 32] * len(some),
            "image": [png(Image.fromarray(crop)) for _, _, crop in some],
            "width": [32] * len(some),
            "height": [32] * len(some),
            "caption": ["a toy"] * len(some),
            "caption_source": ["alt_text"] * len(some),
            "target_word": ["Toy" if view else "toy" for _, view, _ in some],
            "target_start": [2] * len(some),
            "target_end": [5] * len(some),
            "subject_box": [(0.0, 0.0, 32.0, 32.0)] * len(some),
            "view_uids": [["known"] if parent == "0-0" else [] for parent in parents],
        }
        (folder / f"{name}.parquet").write_bytes(tables.to_parquet(tables.record_table(columns, {})))
    return folder


def run(records: Path, output: Path, **settings: float) -> StageResult:
    views = ViewsSettings(encoder=ENCODER, batch_size=4, max_similarity=0.9999, **settings)  # type: ignore[arg-type]
    return run_stage(VIEWS, str(records), str(output), PreprocessSettings(views=views), executor=InProcess())


def views_of(result: StageResult) -> dict[str, list[str]]:
    table = pa.concat_tables(pq.read_table(file) for file in sorted(Path(result.directory).glob("*.parquet")))
    names = {record_uid(parent, "toy", 0): parent for parent in table["parent_uid"].to_pylist()}
    columns = zip(table["uid"].to_pylist(), table["view_uids"].to_pylist(), strict=True)
    return {names[uid]: [names.get(view, view) for view in views] for uid, views in columns}


def test_records_get_the_views_of_other_units_after_the_known_ones(records: Path, tmp_path: Path) -> None:
    result = run(records, tmp_path, min_similarity=0.0, neighbours=20)
    views = views_of(result)
    assert views["0-0"][0] == "known" and len(views) == 12
    # a copy's cosine is 1, and it is not linked; every other picture is near enough
    assert all(set(found) - {"known"} == set(views) - {name, copy_of(name)} for name, found in views.items())
    assert result.report["kept"] == result.report["in"] == 12 and result.report["links"] == 12 * 11 - 8
    schema = pq.read_schema(next(iter(Path(result.directory).glob("*.parquet"))))
    record.check_schema(schema)
    assert b"image_encoder" in schema.field("view_uids").metadata[b"model"]


def copy_of(name: str) -> str:
    return {"0": f"{name[0]}-2", "2": f"{name[0]}-0"}.get(name[2], name)


def test_partitions_change_no_byte_and_nothing_is_done_twice(records: Path, tmp_path: Path) -> None:
    one = run(records, tmp_path / "one", min_similarity=0.5)
    small = run(records, tmp_path / "small", min_similarity=0.5, partition_rows=2)
    files = [{path.name: path.read_bytes() for path in Path(done.directory).glob("*.parquet")} for done in (one, small)]
    assert files[0] == files[1] and Path(one.directory).name == Path(small.directory).name
    before = snapshot(tmp_path / "one")
    again = run(records, tmp_path / "one", min_similarity=0.5)
    assert again.units_run == 0 and snapshot(tmp_path / "one") == before


def test_a_broken_crop_has_no_views_and_stays(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    table = pq.read_table(records / "a.parquet")
    broken = [b"no picture", *table["image"].to_pylist()[1:]]
    table = tables.with_column(table, record.SCHEMA.field("image"), broken)
    (folder / "a.parquet").write_bytes(tables.to_parquet(table))
    result = run(folder, tmp_path / "out", min_similarity=0.0, neighbours=9)
    views = views_of(result)
    assert result.report["kept"] == 6 and views["0-0"] == ["known"]
    assert all("0-0" not in found for found in views.values())


@pytest.mark.parametrize("cut", [False, True])
def test_crops_are_decoded_a_batch_ahead_and_pictures_read_only_for_them(
    cut: bool, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(records / "a.parquet")
    if cut:
        table = tables.with_column(table, record.SCHEMA.field("subject_image"), table["image"])
    pq.write_table(table, tmp_path / "a.parquet")
    file = InputFile(name="a", uri=str(tmp_path / "a.parquet"), size=0, number=0)
    unit = Unit(name="a", identity="", kind=UnitKind.PART, files=(file,))
    decoded, columns, seen = [0], set[str](), list[int]()
    read = tables.read_columns

    def counting(data: bytes) -> Image.Image:
        decoded[0] += 1
        return decode(data)

    def noting(uri: str, names: list[str]) -> pa.Table:
        columns.update(names)
        return read(uri, names)

    def embed(crops: list[Image.Image], size: int) -> np.ndarray:
        seen.append(decoded[0])
        return np.eye(len(crops), 8, dtype=np.float32)

    monkeypatch.setattr(search, "decode", counting)
    monkeypatch.setattr(tables, "read_columns", noting)
    sealed = search._embedded(unit, embed, ViewsSettings(encoder="e", batch_size=1), Store(), 1)  # type: ignore[arg-type]
    assert sealed.counts.kept == len(seen) == 6 and seen[0] <= 2 and ("image" in columns) is not cut


def test_views_runs_only_where_it_has_an_encoder(tmp_path: Path, records: Path) -> None:
    assert chain(PreprocessSettings()) == CHAIN and VIEWS not in CHAIN and "views" in CATALOGUE
    with_views = chain(PreprocessSettings(views=ViewsSettings(encoder=ENCODER)))
    assert [stage.name for stage in with_views][-3:] == ["subjects", "views", "encode"]
    with pytest.raises(UsageError, match=r"views needs views\.encoder"):
        run_stage(VIEWS, str(records), str(tmp_path), PreprocessSettings(), executor=InProcess())
    siglip = tiny_siglip_dino(tmp_path / "models").split(",")[0]
    settings = PreprocessSettings(views=ViewsSettings(encoder=siglip))
    with pytest.raises(UsageError, match="a model of type 'siglip_vision_model', none of clip"):
        run_stage(VIEWS, str(records), str(tmp_path / "out"), settings, executor=InProcess())
    with pytest.raises(UsageError, match=r"views\.min_similarity=0\.999 must be"):
        ViewsSettings(min_similarity=0.999)
