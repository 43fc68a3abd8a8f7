"""Aspect-ratio buckets: which size a picture is cut to, and what the stage that encodes it counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from realcustom.buckets import Buckets
from realcustom.cells import decode_mask, decode_tensor
from realcustom.errors import UsageError
from realcustom.preprocessing.catalogue import ENCODE
from realcustom.preprocessing.engine.fingerprint import describe
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import EncodeSettings, PreprocessSettings
from realcustom.settings import MethodSettings
from tests.support.tiny import tiny_base
from tests.support.training_corpus import write_pictures

TINY = Buckets(areas=(48, 96), step=16)  # 16 pixels are 8 cells of the tiny VAE
# a picture, and its bucket; the share of it that is cropped: 0, .1, 0, .05, .53
SIZES = {
    (80, 40): (64, 32),
    (40, 72): (32, 64),
    (50, 50): (48, 48),
    (160, 120): (112, 80),
    (300, 100): (112, 80),
    (40, 40): None,
}


def test_buckets_have_one_area_and_a_bounded_ratio() -> None:
    sizes = Buckets(areas=(1024,)).sizes
    assert set(sizes) == {
        *((1024, 1024), (960, 1088), (896, 1152), (832, 1216), (768, 1344)),
        *((1088, 960), (1152, 896), (1216, 832), (1344, 768)),
    }
    for area, step, ratio in ((512, 64, 2.0), (512, 8, 1.5), (100, 30, 4.0), (64, 64, 1.0)):
        found = Buckets(areas=(area,), step=step, max_ratio=ratio).sizes
        assert found and {(high, wide) for wide, high in found} == set(found)
        for wide, high in found:
            assert wide % step == high % step == 0 and max(wide, high) <= ratio * min(wide, high)
            assert area**2 - step * min(wide, high) < wide * high <= area**2
    assert Buckets(areas=(512, 1024)).sizes == Buckets(areas=(1024, 512, 512)).sizes
    assert Buckets().sizes == ()


@pytest.mark.parametrize("enlarged", [1.0, 1.3])
def test_a_picture_s_bucket_keeps_most_of_it_and_enlarges_it_little(enlarged: float) -> None:
    """Against a search over all areas and sizes."""
    rule = Buckets(areas=(64, 128, 256), step=16, max_enlarged=enlarged)
    random = np.random.default_rng(0)
    pictures = random.integers(30, 400, (500, 2))
    numbers = rule.numbers(*pictures.T)
    assert set(numbers.tolist()) == set(range(-1, len(rule.sizes)))
    for (width, height), number in zip(pictures.tolist(), numbers, strict=True):
        best = None
        for area in (256, 128, 64):
            sizes = Buckets(areas=(area,), step=16).sizes
            kept = {size: min(width / height * size[1] / size[0], height / width * size[0] / size[1]) for size in sizes}
            most = max(sizes, key=lambda size: round(kept[size], 9))
            if best is None and max(most[0] / width, most[1] / height) <= enlarged:
                best = most
        assert rule.of((width, height)) == best == (None if number < 0 else rule.sizes[number])


def test_a_rule_without_a_bucket_is_refused() -> None:
    with pytest.raises(UsageError, match="areas: 48 holds no bucket, it is smaller than step=64"):
        Buckets(areas=(512, 48))
    for wrong in ({"step": 0}, {"max_ratio": 0.5}, {"max_enlarged": 0.0}):
        with pytest.raises(UsageError, match="must be at least 1"):
            Buckets(**wrong)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PreprocessSettings:
    base = tiny_base(tmp_path_factory.mktemp("base") / "base")
    encode = EncodeSettings(base=base, text_features=False, image_features=False, batch_size=2, buckets=TINY)
    return PreprocessSettings(encode=encode)


def test_pictures_are_encoded_at_their_bucket_s_size_and_counted(settings: PreprocessSettings, tmp_path: Path) -> None:
    write_pictures(tmp_path / "records", 12, 1, sizes=list(SIZES))
    result = run_stage(
        ENCODE, str(tmp_path / "records"), str(tmp_path), settings, method=MethodSettings(), executor=InProcess()
    )
    report = result.report
    assert report["in"] == 12 and report["kept"] == 10 and report["dropped"] == {"enlarged": 2}
    assert report["noted"] == {
        **{"bucket_64x32": 2, "bucket_32x64": 2, "bucket_48x48": 2, "bucket_112x80": 4},
        **{"cropped_5_to_15_percent": 2, "cropped_under_5_percent": 2, "cropped_over_15_percent": 2},
    }
    table = pq.read_table(next(Path(result.directory).glob("*.parquet")))
    for row in table.to_pylist():
        size = SIZES[row["width"], row["height"]]
        assert size is not None and size == TINY.of((row["width"], row["height"]))
        latents = decode_tensor(row["latents"])
        assert latents.shape == (4, size[1] // 2, size[0] // 2)
        assert decode_mask(row["subject_mask"]).shape == (row["height"], row["width"])
    assert Buckets.of_schema(table.schema) == TINY


def test_mistakes_are_one_line(settings: PreprocessSettings, tmp_path: Path) -> None:
    write_pictures(tmp_path / "records", 2, 1)

    def run(**changes: object) -> None:
        wrong = replace(settings, encode=replace(settings.encode, **changes))  # type: ignore[arg-type]
        run_stage(
            ENCODE, str(tmp_path / "records"), str(tmp_path), wrong, method=MethodSettings(), executor=InProcess()
        )

    with pytest.raises(UsageError, match=r"encode\.buckets needs encode\.latents"):
        run(latents=False)
    with pytest.raises(UsageError, match=r"encode\.buckets\.step=9 is no multiple of 2"):
        run(buckets=Buckets(areas=(32,), step=9))


def test_a_stage_without_buckets_has_the_description_that_it_had(settings: PreprocessSettings) -> None:
    def parameters(encode: EncodeSettings) -> dict[str, object]:
        described = describe(ENCODE, replace(settings, encode=encode), "", {}, MethodSettings())
        found: dict[str, object] = described["parameters"]
        return found

    plain = parameters(replace(settings.encode, buckets=Buckets()))
    assert "buckets" not in plain and plain["resolution"] == 512
    assert plain == parameters(replace(settings.encode, buckets=Buckets(step=8)))
    assert "resolution" not in parameters(settings.encode)
