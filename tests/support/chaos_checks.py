"""Settings of a stage that is to be disturbed, its undisturbed run, and what must hold after the disturbed one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.select import partitions
from realcustom.preprocessing.settings import (
    CaptionSettings,
    EncodeSettings,
    ExecutionSettings,
    PreprocessSettings,
    ScoreSettings,
    SelectSettings,
    SubjectsSettings,
)
from tests.support.chaos import METHOD, Outcome, Task, manifests
from tests.support.corpora import jpeg, picture, sample, snapshot, tar_bytes


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A stage's run that nobody disturbed."""

    directory: str
    units: int  # of all its steps
    rows: dict[str, int]  # in, kept, dropped, quarantined


def chaos_settings(models: Path) -> PreprocessSettings:
    """Two workers, real model classes at tiny size, and everything that the random detectors find is let through.

    Captions are long: a unit that is done in an instant is never killed.
    """
    from tests.support import tiny_models  # here: `ingest` and `select` are disturbed without transformers
    from tests.support.tiny import tiny_base, tiny_image_encoder

    return PreprocessSettings(
        score=ScoreSettings(clip=tiny_models.clip(models / "clip"), heads=tiny_models.heads(models / "heads")),
        select=SelectSettings(min_side=16, partition_rows=100, exact_search_rows=0),
        caption=CaptionSettings(model=tiny_models.blip(models / "blip"), max_new_tokens=24),
        subjects=SubjectsSettings(
            detector=tiny_models.grounding_dino(models / "dino"),
            segmenter=tiny_models.sam(models / "sam"),
            min_detection_score=0.0,
            min_segmentation_score=-1e9,
            min_area=0.0,
            max_area=1.0,
            min_box_mask_iou=0.0,
            min_box_side=1,
        ),
        encode=EncodeSettings(
            base=tiny_base(models / "base"), image_encoder=tiny_image_encoder(models / "encoder"), resolution=32
        ),
        execution=ExecutionSettings(workers=2, max_error_floor=100),
    )


def write_corrupted(folder: Path, shards: int, samples: int = 6, size: tuple[int, int] = (1200, 900)) -> str:
    """Shards of pictures large enough that a unit takes a while; in every third one a sample is corrupted, each way in turn.

    A truncated picture, an empty one, a copy, a compressed copy, a tiny one, an empty caption; the last tar is torn.
    """
    folder.mkdir(parents=True)
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(samples):
            image = picture(1000 * shard + number, size)
            data, caption = jpeg(image), f"a toy on grass number {number}"
            if number == 1 and shard % 3 == 0:
                other = picture(1000 * shard, size)
                kinds = (data[: len(data) // 2], b"", jpeg(other), jpeg(other, 60), jpeg(image.resize((8, 8))), data)
                data = kinds[shard // 3 % len(kinds)]
                caption = "" if shard // 3 % len(kinds) == 5 else caption
            members |= sample(f"{number:06d}", data, caption)
        whole = tar_bytes(members)
        (folder / f"shard-{shard:05d}.tar").write_bytes(whole[: len(whole) // 2] if shard == shards - 1 else whole)
    return str(folder)


def run_here(
    stage: Stage, source: str, output: Path, settings: PreprocessSettings, units_per_block: int
) -> StageResult:
    """Run the stage in this process, with blocks as a disturbed one's."""
    with (
        mock.patch.object(partitions, "UNITS_PER_BLOCK", units_per_block),
    ):
        return run_stage(stage, source, str(output), settings, method=METHOD, executor=InProcess())


def undisturbed(stage: Stage, source: str, output: Path, settings: PreprocessSettings) -> Undisturbed:
    """What a run in this process, which nothing disturbs, comes to."""
    result = run_here(stage, source, output, settings, units_per_block=2)
    report = result.report
    rows = {name: report[name] for name in ("in", "kept")}
    rows |= {name: sum(report[name].values()) for name in ("dropped", "quarantined")}
    assert rows["in"] == rows["kept"] + rows["dropped"] + rows["quarantined"]
    return Undisturbed(directory=result.directory, units=len(manifests(output)), rows=rows)


def check_survived(task: Task, outcome: Outcome, whole: Undisturbed, least: float = 0.8) -> None:
    """The same bytes as undisturbed, nothing done twice, nothing left to do.

    Args:
        least: the least share of kills that must hit a unit in flight.
    Raises:
        AssertionError: otherwise.
    """
    name = task.stage.name
    directory = task.output / Path(whole.directory).name
    wanted, got = snapshot(whole.directory), snapshot(directory)
    assert sorted(got) == sorted(wanted), f"{name}: files differ: {sorted(set(got) ^ set(wanted))[:10]}"
    differing = [file for file in wanted if got[file] != wanted[file]]
    assert not differing, f"{name}: bytes differ: {differing[:10]}"
    assert not outcome.redone, f"{name}: done again though they were done: {outcome.redone[:10]}"
    assert outcome.in_flight >= least * outcome.kills, f"{name}: {outcome.in_flight} of {outcome.kills} kills in flight"
    again = run_here(task.stage, task.source, task.output, task.settings, task.units_per_block).units_run
    assert again == 0, f"{name}: a rerun executed {again} units"
    assert snapshot(directory) == wanted
