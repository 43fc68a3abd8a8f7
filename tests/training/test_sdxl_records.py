"""What SDXL is conditioned on besides text: pooled text and sizes, from the records that `encode` wrote for such a base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from realcustom.buckets import Buckets
from realcustom.cells import decode_mask, decode_tensor, encode_tensor
from realcustom.dtype import Dtype
from realcustom.errors import UsageError
from realcustom.preprocessing.catalogue import ENCODE
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import EncodeSettings, PreprocessSettings
from realcustom.record import POOLED, SCHEMA, check_schema
from realcustom.settings import BaseSettings, PooledText
from realcustom.training.features import Kind
from realcustom.training.geometry import time_ids
from realcustom.training.run import make_job
from realcustom.training.settings import BadRecords
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.tiny import tiny_sdxl_base
from tests.support.training_corpus import write_pictures
from tests.support.training_runs import METHOD, SETTINGS, fit

SDXL = replace(SETTINGS, steps=6, p_drop_text=0.5, p_drop_image=0.0)


@pytest.fixture(scope="module")
def sdxl(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("sdxl_records")
    base = tiny_sdxl_base(root / "base")
    write_pictures(root / "pictures", 12, sizes=((80, 40), (40, 72), (50, 50)))
    encode = EncodeSettings(
        base=base, image_encoder=world.image_encoder, buckets=Buckets(areas=(48,), step=16), dtype=Dtype.FLOAT32
    )
    directory = run_stage(
        ENCODE,
        str(root / "pictures"),
        str(root / "out"),
        PreprocessSettings(encode=replace(encode, keep_image=False)),
        method=METHOD,
        executor=InProcess(),
    ).directory
    return SimpleNamespace(base=base, image_encoder=world.image_encoder, caches=directory)


def make_worker(sdxl: SimpleNamespace, output: Path) -> Worker:
    return Worker(make_job(sdxl.caches, str(output), sdxl.base, sdxl.image_encoder, METHOD, SDXL), World())


def rewritten(sdxl: SimpleNamespace, target: Path, **changes: object) -> SimpleNamespace:
    """The same records, one of the second file's rows changed."""
    target.mkdir()
    for number, path in enumerate(sorted(Path(sdxl.caches).glob("*.parquet"))):
        table = pq.read_table(path)
        if number == 1:
            rows = table.to_pylist()
            rows[0] |= changes
            table = pa.Table.from_pylist(rows, schema=table.schema)
        pq.write_table(table, target / path.name)
    return SimpleNamespace(**{**vars(sdxl), "caches": str(target)})


def test_records_hold_the_pooled_text_and_no_text_encoder_is_loaded(sdxl: SimpleNamespace, tmp_path: Path) -> None:
    worker = make_worker(sdxl, tmp_path)
    index, encoders = worker.features.index, worker.encoders
    check_schema(index.schema)
    assert index.schema.names == [*SCHEMA.names, POOLED.name]
    dropped = 0
    for step in range(4):
        batch = worker.batches.training(worker.order.share(step, 0, 1))
        assert worker.base.text_encoder is None and worker.base.pipeline.text_encoder_2 is None
        assert batch.pooled_text is not None and batch.time_ids is not None
        width, height = (2 * side for side in reversed(batch.latents.shape[2:]))
        for row, number in enumerate(batch.numbers):
            cached = decode_tensor(worker.features._rows.cell(number, POOLED.name).as_py())
            dropped += not torch.equal(batch.pooled_text[row], cached)
            picture = worker.features.picture(number)
            assert picture.bucket == (width, height) and picture.subject_mask is not None
            mask, size = decode_mask(picture.subject_mask), worker.features.size(number)
            expected = time_ids(size, mask, (width, height), METHOD.base.time_ids_order)
            assert batch.time_ids[row].tolist() == expected
            assert expected[:2] == [size[1], size[0]] and expected[4:] == [height, width]
    assert 4 < dropped < 16  # of 20
    for number in range(3):
        computed = encoders.pooled_text(worker.features.picture(number).caption)
        torch.testing.assert_close(worker.features.get(Kind.POOLED, number), computed, rtol=1e-5, atol=1e-5)
    assert not worker.features.get(Kind.POOLED, 0).equal(worker.features.get(Kind.POOLED, 1))


def test_such_records_are_trained_on_and_a_broken_one_is_named_or_dropped(
    sdxl: SimpleNamespace, tmp_path: Path
) -> None:
    broken = {POOLED.name: encode_tensor(torch.tensor([torch.nan] * 24), Dtype.FLOAT32)}
    poisoned = rewritten(sdxl, tmp_path / "poisoned", **broken)
    with pytest.raises(UsageError, match="its pooled_text hold a value that is not finite"):
        fit(poisoned, tmp_path / "stopped", SDXL, poisoned.caches)
    dropping = replace(SDXL, gradient_accumulation=2, bad_records=BadRecords.DROP)
    result = fit(poisoned, tmp_path / "run", dropping, poisoned.caches)
    assert result.loss_after < result.loss_before and len(list((tmp_path / "run/dropped").iterdir())) == 1


def without_pooled_text(sdxl: SimpleNamespace, target: Path, files: slice) -> SimpleNamespace:
    """The same records, the column of pooled text removed from those files."""
    shutil.copytree(sdxl.caches, target)
    for path in sorted(target.glob("*.parquet"))[files]:
        pq.write_table(pq.read_table(path).drop_columns([POOLED.name]), path)
    return SimpleNamespace(**{**vars(sdxl), "caches": str(target)})


def test_mistakes_are_one_line_each(sdxl: SimpleNamespace, tmp_path: Path) -> None:
    lacking = without_pooled_text(sdxl, tmp_path / "lacking", slice(None))
    with pytest.raises(UsageError, match="have text_features but no pooled_text, which a base of SDXL's shape"):
        fit(lacking, tmp_path / "run", SDXL, lacking.caches)
    mixed = without_pooled_text(sdxl, tmp_path / "mixed", slice(1, None))
    with pytest.raises(UsageError, match=r"\.parquet: either it or the first file has no pooled_text"):
        fit(mixed, tmp_path / "run", SDXL, mixed.caches)
    other = replace(METHOD, base=BaseSettings(sdxl_pooled=PooledText.UNPROJECTED_COMPAT))
    with pytest.raises(
        UsageError, match="pooled_text were made with sdxl_pooled projected, this run has unprojected_compat"
    ):
        fit(sdxl, tmp_path / "run", SDXL, sdxl.caches, other)
