"""The parts of a rehearsal, each the real code on pictures of a photograph's size. Each runs in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw

from realcustom.checkpoint import load_adapter
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.maps import text_cross_attentions
from realcustom.pipeline.recipes import RunSettings
from realcustom.pipeline.rehearse.folders import write_folder
from realcustom.pipeline.rehearse.measure import Measured
from realcustom.pipeline.rehearse.public import PublicModel
from realcustom.preprocessing.catalogue import CAPTION, ENCODE, INGEST, SCORE, SELECT, SUBJECTS
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.record import POOLED
from realcustom.training.run import train

WORD = "dog"
PROMPT = f"a photo of a {WORD} in the snow"
SIZE = (1024, 768)  # of a picture, pixels


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is rehearsed. The settings' models are folders."""

    settings: RunSettings
    folder: Path  # all files of the rehearsal
    steps: int  # of training and of denoising
    pictures: int
    side: int | None  # of the image that is drawn, pixels; None = the base's own
    device: str
    models: tuple[PublicModel, ...]  # that are made

    @property
    def adapter(self) -> Path:
        """That training writes and denoising loads."""
        return self.folder / "train" / "adapter.safetensors"


def write_pictures(folder: Path, number: int) -> None:
    """Different drawn pictures with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        picture = Image.radial_gradient("L").resize(SIZE).convert("RGB")
        corner = 40 + 97 * index % 300
        ImageDraw.Draw(picture).ellipse(
            (corner, corner, corner + 400, corner + 300), fill=(200, 20 + 50 * index % 200, 60)
        )
        picture.save(folder / f"{index:04d}.jpg", quality=90)
        (folder / f"{index:04d}.txt").write_text(PROMPT)


def make_models(plan: Plan) -> Measured:
    """Write the models' folders, one after another."""
    for model in plan.models:
        write_folder(model, model_folder(plan.folder, model.name), torch.bfloat16)
    return Measured(name="making the models", shapes=(f"{len(plan.models)} folders, weights in bf16",))


def model_folder(folder: Path, name: str) -> Path:
    """Where a model of the hub is written."""
    return folder / "models" / name.replace("/", "--")


def score(plan: Plan) -> Measured:
    """`score`, after `ingest`."""
    source = _run(plan, INGEST, str(plan.folder / "pictures")).directory
    return _of_stage(plan, SCORE, _run(plan, SCORE, source))


def caption(plan: Plan) -> Measured:
    """`caption`, after `select`."""
    selected = _run(plan, SELECT, _output(plan, SCORE)).directory
    return _of_stage(plan, CAPTION, _run(plan, CAPTION, selected))


def subjects(plan: Plan) -> Measured:
    """`subjects`: random weights find anything or nothing, and every check is off."""
    return _of_stage(plan, SUBJECTS, _run(plan, SUBJECTS, _output(plan, CAPTION)))


def encode(plan: Plan) -> Measured:
    """`encode`, of records whose subject is the whole picture, which are there whatever random weights find."""
    section = replace(plan.settings.preprocess.subjects, detector=None, segmenter=None)
    settings = replace(plan.settings, preprocess=replace(plan.settings.preprocess, subjects=section))
    whole = replace(plan, settings=settings)
    records = _run(whole, SUBJECTS, _output(plan, CAPTION)).directory
    return _of_stage(plan, ENCODE, _run(plan, ENCODE, records))


def training(plan: Plan) -> Measured:
    """Training steps with gradient checkpointing, and the adapter."""
    settings = plan.settings
    began = time.monotonic()
    result = train(
        records=_output(plan, ENCODE),
        output=str(plan.adapter.parent),
        base=settings.base,
        image_encoder=None,
        method=settings.method,
        settings=settings.train,
        local=True,
    )
    rows = [row for row in result.curve if row.get("images_per_second")]
    images = settings.train.batch_size * len(rows)
    work = sum(settings.train.batch_size / row["images_per_second"] for row in rows)
    return Measured(
        name=f"training, {plan.steps} step(s)",
        shapes=(*_of_adapter(plan), f"validation loss {result.loss_before:.3f} -> {result.loss_after:.3f}"),
        load_seconds=time.monotonic() - began - work,
        work_seconds=work,
        images=images,
    )


def denoising(plan: Plan) -> Measured:
    """The adapter loaded again, and an image in a few steps, with maps."""
    settings = plan.settings
    began = time.monotonic()
    pipe = RealCustomPipeline.from_pretrained(
        settings.base,
        plan.adapter,
        settings.method.image_encoder.model,
        device=plan.device,
        torch_dtype=torch.bfloat16,
    )
    assert pipe.model is not None
    loaded = pipe.model.adapter_state_dict()
    for name, saved in load_adapter(plan.adapter).tensors.items():
        assert torch.equal(loaded[name].cpu(), saved.to(loaded[name].dtype)), name
    ready = time.monotonic()
    output = pipe(
        PROMPT,
        [Subject(image=Image.open(plan.folder / "pictures" / "0000.jpg"), word=WORD)],
        height=plan.side,
        width=plan.side,
        num_inference_steps=plan.steps,
        generator=torch.Generator().manual_seed(0),
        return_masks=True,
    )
    work = time.monotonic() - ready
    assert output.masks is not None
    image, mask = output.images[0], output.masks[0][0]
    layers = len(text_cross_attentions(pipe.base.unet))
    return Measured(
        name=f"denoising, {plan.steps} step(s)",
        shapes=(
            f"image {image.width} x {image.height}",  # type: ignore[union-attr]
            f"mask {mask.shape[-2]} x {mask.shape[-1]} of {layers} cross-attentions' maps",
            f"{len(loaded)} tensors of the adapter as saved",
        ),
        load_seconds=ready - began,
        work_seconds=work,
        images=1,
    )


PARTS: tuple[Callable[[Plan], Measured], ...] = (make_models, score, caption, subjects, encode, training, denoising)


def _run(plan: Plan, stage: Stage, source: str) -> StageResult:
    """A stage on the table that another wrote."""
    return run_stage(
        stage,
        source,
        str(plan.folder / "stages"),
        plan.settings.for_stages(),
        method=plan.settings.method,
        executor=InProcess(),
    )


def _output(plan: Plan, stage: Stage) -> str:
    """The newest directory of a stage."""
    found = sorted((plan.folder / "stages").glob(f"{stage.name}@*"), key=lambda path: path.stat().st_mtime_ns)
    return str(found[-1])


def _of_stage(plan: Plan, stage: Stage, result: StageResult) -> Measured:
    table = pq.read_table(next(iter(sorted(Path(result.directory).glob("*.parquet")))))
    row = table.slice(0, 1).to_pylist()[0] if table.num_rows else {}
    shapes = [f"{result.report['in']} in, {result.report['rows_out']} rows out"]
    if stage is SCORE:
        shapes.append(", ".join(name for name, value in row["scores"].items() if value is not None))
    elif stage is CAPTION and row["synthetic_caption"] is not None:
        shapes.append(f"captions of {len(row['synthetic_caption'].split())} words")
    elif stage is ENCODE:
        names = ("latents", "text_features", "image_features", POOLED.name)
        caches = {name: row[name] for name in names if row.get(name) is not None}
        shapes += [f"{name} {' x '.join(map(str, cell['shape']))}" for name, cell in caches.items()]
    work = sum(result.unit_seconds)
    return Measured(
        name=stage.name,
        shapes=tuple(shapes),
        load_seconds=result.seconds - work,
        work_seconds=work,
        images=result.report["in"],
    )


def _of_adapter(plan: Plan) -> tuple[str, ...]:
    tensors = load_adapter(plan.adapter).tensors
    return (f"adapter {len(tensors)} tensors, {sum(value.numel() for value in tensors.values()):,} parameters",)
