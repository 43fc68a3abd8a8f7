"""The one batch shape that models run at: found by halving where it is to be, the job's from then on; and their dtype."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from realcustom.config import SettingError, build
from realcustom.preprocessing.catalogue import CAPTION, ENCODE, INGEST, SCORE, SUBJECTS
from realcustom.preprocessing.engine import batch_size, ray_data
from realcustom.preprocessing.engine.batch_size import probe
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.engine.worker import StageJob
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import (
    BatchSize,
    CaptionSettings,
    ComputeSettings,
    Device,
    EncodeSettings,
    ExecutionSettings,
    ModelDtype,
    PreprocessSettings,
    ScoreSettings,
    SubjectsSettings,
)
from realcustom.settings import MethodSettings
from tests.support import tiny_models
from tests.support.corpora import snapshot, write_shards
from tests.support.tiny import tiny_base, tiny_image_encoder

MODEL_STAGES = (SCORE, CAPTION, SUBJECTS, ENCODE)
AUTO = BatchSize.AUTO


@contextmanager
def memory_for(pictures: int | None) -> Iterator[list[int]]:
    """Inside, the models' convolutions run out of memory above so many pictures; the batch sizes that they were given."""
    sizes: list[int] = []

    def remember(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Conv2d):
            sizes.append(len(arguments[0]))
            if pictures is not None and sizes[-1] > pictures:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_module_forward_pre_hook(remember)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PreprocessSettings:
    root = tmp_path_factory.mktemp("models")
    detector, segmenter = tiny_models.grounding_dino(root / "dino"), tiny_models.sam(root / "sam")
    base, image_encoder = tiny_base(root / "base"), tiny_image_encoder(root / "encoder")
    return PreprocessSettings(
        score=ScoreSettings(
            clip=tiny_models.clip(root / "clip"), heads=tiny_models.heads(root / "heads"), batch_size=AUTO
        ),
        caption=CaptionSettings(model=tiny_models.blip(root / "blip"), max_new_tokens=5, batch_size=AUTO),
        subjects=SubjectsSettings(detector=detector, segmenter=segmenter, batch_size=AUTO),
        encode=EncodeSettings(base=base, image_encoder=image_encoder, resolution=32, batch_size=AUTO),
        compute=ComputeSettings(largest_batch=12),
    )


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two units of five pictures."""
    root = tmp_path_factory.mktemp("ingested")
    write_shards(root / "src", 2, 5)
    return run_stage(INGEST, str(root / "src"), str(root), PreprocessSettings(), executor=InProcess()).directory


def job(stage: Stage, settings: PreprocessSettings) -> StageJob:
    models = dict.fromkeys(("clip", "model", "detector", "segmenter", "base", "image_encoder"), "m")
    return stage.job(settings, "nowhere", models, MethodSettings())


def score(source: str, output: Path, settings: PreprocessSettings, size: int | BatchSize = AUTO) -> StageResult:
    settings = replace(settings, score=replace(settings.score, batch_size=size))
    return run_stage(SCORE, source, str(output), settings, executor=InProcess())


@pytest.mark.parametrize("stage", MODEL_STAGES)
def test_the_batch_is_halved_until_it_fits(stage: Stage, models: PreprocessSettings) -> None:
    with memory_for(3) as sizes:
        assert probe(job(stage, models)) == 3
    assert list(dict.fromkeys(sizes)) == [12, 6, 3]
    with memory_for(None) as sizes:
        assert probe(job(stage, models)) == 12
    assert set(sizes) == {12}
    with memory_for(0), pytest.raises(ValueError, match=rf"{stage.name}\.batch_size=auto: .* not even one picture"):
        probe(job(stage, models))


def test_what_was_found_is_the_jobs(ingested: str, models: PreprocessSettings, tmp_path: Path) -> None:
    """One shape from the first unit on, also when it goes on where memory is larger; and it is in the fingerprint."""
    with memory_for(4) as sizes:
        found = score(ingested, tmp_path / "auto", models)
    assert list(dict.fromkeys(sizes)) == [12, 6, 3] and set(sizes[2:]) == {3}
    whole = snapshot(found.directory)
    given = score(ingested, tmp_path / "given", models, 3)
    assert Path(given.directory).name == Path(found.directory).name
    assert snapshot(given.directory) == whole

    next(Path(found.directory).glob("manifests/*.json")).unlink()  # as if it had been killed before
    with memory_for(None) as sizes:
        again = score(ingested, tmp_path / "auto", models)
        assert set(sizes) == {3}
        assert (again.directory, again.units_run) == (found.directory, 1) and snapshot(again.directory) == whole
        sizes.clear()
        assert score(ingested, tmp_path / "auto", models).units_run == 0 and not sizes
        other = score(ingested, tmp_path / "elsewhere", models)  # another root: another job, another probe
        assert set(sizes) == {12} and Path(other.directory).name != Path(found.directory).name


def test_a_batch_that_does_not_fit_is_said(ingested: str, models: PreprocessSettings, tmp_path: Path) -> None:
    with memory_for(0), pytest.raises(ValueError, match="not even one picture"):
        score(ingested, tmp_path / "auto", models)
    assert not (tmp_path / "auto").exists()
    with memory_for(4), pytest.raises(ValueError, match=r"row .*score\.batch_size=8 does not fit: give a smaller one"):
        score(ingested, tmp_path / "given", models, 8)


def limited_probe(job: StageJob) -> int:
    with memory_for(4):
        return probe(job)


class Watched(ray_data._ModelWorker):
    """Writes down which batch sizes its models are given, one file a worker."""

    def __init__(self, job: StageJob, *others: Any):
        super().__init__(job, *others)
        self._seen = Path(job.directory).parents[1] / "seen" / str(os.getpid())
        self._seen.parent.mkdir(exist_ok=True)

    def __call__(self, batch):  # type: ignore[no-untyped-def]
        with memory_for(4) as sizes:
            result = super().__call__(batch)
        with self._seen.open("a") as file:
            file.writelines(f"{size}\n" for size in sizes)
        return result


@pytest.mark.slow
def test_all_workers_use_the_size_that_one_found_and_bytes_do_not_depend_on_them(
    ray_cluster: str, models: PreprocessSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "probe", limited_probe)
    monkeypatch.setattr(ray_data, "_ModelWorker", Watched)
    write_shards(tmp_path / "src", 6, 4)
    source = run_stage(INGEST, str(tmp_path / "src"), str(tmp_path / "out"), models, executor=InProcess()).directory
    settings = replace(models, execution=ExecutionSettings(workers=2))
    found = run_stage(SCORE, source, str(tmp_path / "out"), settings)
    seen = [set(path.read_text().split()) for path in (tmp_path / "seen").iterdir()]
    assert seen and all(sizes == {"3"} for sizes in seen)  # a second worker may have come too late for a unit
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / Path(source).name).symlink_to(source)  # the page links to the stage before, if it is beside
    alone = score(source, tmp_path / "alone", models, 3)
    assert Path(alone.directory).name == Path(found.directory).name
    assert snapshot(alone.directory) == snapshot(found.directory)


@pytest.mark.parametrize("stage", MODEL_STAGES)
def test_models_compute_in_the_dtype_of_the_settings(stage: Stage, models: PreprocessSettings) -> None:
    for dtype, expected in ((ModelDtype.BFLOAT16, torch.bfloat16), (ModelDtype.AUTO, torch.float32)):
        seen: set[torch.dtype] = set()

        def remember(
            module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor, seen: set[torch.dtype] = seen
        ) -> None:
            if isinstance(module, nn.Conv2d):
                seen.add(output.dtype)

        handle = register_module_forward_hook(remember)
        try:
            probe(job(stage, replace(models, compute=ComputeSettings(largest_batch=2, dtype=dtype))))
        finally:
            handle.remove()
        assert seen == {expected}


def test_the_dtype_is_part_of_the_fingerprint(ingested: str, models: PreprocessSettings, tmp_path: Path) -> None:
    directories = []
    for dtype in (ModelDtype.AUTO, ModelDtype.FLOAT32, ModelDtype.BFLOAT16):
        settings = replace(models, compute=ComputeSettings(dtype=dtype))
        directories.append(score(ingested, tmp_path, settings, 2).directory)
    assert directories[0] == directories[1] != directories[2]
    assert ComputeSettings(device=Device.CUDA).number_format is ModelDtype.BFLOAT16


def test_a_batch_size_is_a_number_or_auto() -> None:
    assert build(PreprocessSettings, {"score": {"batch_size": "auto"}}).score.batch_size is AUTO
    for value in ("aut", 0, 1.5):
        with pytest.raises(SettingError, match=r"score"):
            build(PreprocessSettings, {"score": {"batch_size": value}})
