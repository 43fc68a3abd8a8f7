"""What evaluation costs beside the sampler and the metrics' models, and how exact its metrics are.

    python benchmarks/evaluation.py              # about 20 minutes on two cores; needs psutil; torchmetrics if it is there
    python benchmarks/evaluation.py --only evaluate_rerun_seconds
    python benchmarks/evaluation.py --tiny       # tries it with a twentieth of the images, writes nothing

The suite is one's own: subjects of the drawn world, three pictures each; models are those that ship.

evaluate_overhead           seconds of `evaluate` over those of the same sampler calls and the same models' forwards, models
                            loaded in both; alternating, both orders
evaluate_rerun_seconds      the whole command, 3,000 images of 30 subjects x 25 prompts x 4, everything cached; the median of 3
evaluate_pss_growth         peak PSS of the command with 1,200 new images over that with 120
evaluate_metric_agreement   largest difference of CLIP-T, CLIP-I and DINO-I to torchmetrics, or where that is not installed to
                            transformers' whole forward, one picture at a time
evaluate_drawn_minutes      `evaluate --suite drawn` from nothing: five rows of 256 images, two workers

Writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import process_tree
import record
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.drawing import Call, draw
from realcustom.evaluation import dreambench
from realcustom.evaluation.embedding import Clip, Dino
from realcustom.evaluation.suite import SuiteCase, decode
from realcustom.evaluation.suites import read_own
from realcustom.machine import torch_threads
from realcustom.pipeline.evaluate.drawing import Where
from realcustom.pipeline.evaluate.request import Request
from realcustom.pipeline.evaluate.run import evaluate
from realcustom.pipeline.recipes import sprites
from realcustom.sampling import SamplingParams
from realcustom.sprites import world, zoo_path
from realcustom.store import Store

RESULTS = record.RESULTS / "evaluation.json"
METRICS = (
    *("evaluate_overhead", "evaluate_rerun_seconds", "evaluate_pss_growth", "evaluate_metric_agreement"),
    "evaluate_drawn_minutes",
)
CLIP, DINO = str(zoo_path("clip")), str(zoo_path("image_encoder"))
COLUMNS = (f"clip_t@{CLIP}", f"clip_i@{CLIP}", f"dino_i@{DINO}", f"diversity@{DINO}", f"copying@{DINO}")
PHOTOS, PAIRS, RERUNS, AGREEING = 3, 3, 3, 32
BATCH = 16


def write_suite(folder: Path, subjects: int, prompts: Sequence[str]) -> tuple[str, str]:
    """Folder of subjects and file of prompts."""
    rows = ["subject,class"]
    for index in range(subjects):
        first = world.scene(world.Split.EVALUATION, 11 * index)
        identity = first.subjects[0].identity
        rows.append(f"s{index:03},{identity.noun}")
        for number in range(PHOTOS):
            scene = world.same_scene_with(world.scene(world.Split.EVALUATION, 11 * index + number), identity)
            path = folder / "subjects" / f"s{index:03}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(world.draw(scene).image).save(path)
    (folder / "subjects" / "subjects.csv").write_text("\n".join(rows) + "\n")
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    return str(folder / "subjects"), str(folder / "prompts.txt")


def command(suite: tuple[str, str], output: Path, steps: int) -> list[str]:
    """The command line; one row that is drawn, and the oracle."""
    metrics = [part for name in COLUMNS for part in ("--metric", name)]
    return [
        *(sys.executable, "-m", "realcustom", "evaluate", "--suite", "own"),
        *("--subjects", suite[0], "--prompts", suite[1], "--output", str(output)),
        *("--row", "subject_with_mask", "--row", "oracle", "--steps", str(steps), *metrics),
    ]


def overhead(folder: Path, share: float) -> list[float]:
    """Ratios of seconds, evaluate over bare, in pairs of alternating order."""
    suite = write_suite(folder, 8 if share == 1 else 2, dreambench.OBJECT_PROMPTS[: 2 if share == 1 else 1])
    ratios = []
    for pair in range(PAIRS if share == 1 else 2):
        sides: list[Callable[[], None]] = [
            lambda pair=pair: run_evaluate(suite, folder / f"output-{pair}"),  # type: ignore[misc]
            lambda: run_bare(suite),
        ]
        seconds = {}
        for side in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            sides[side]()
            seconds[side] = time.perf_counter() - start
        ratios.append(seconds[0] / seconds[1])
        print(f"evaluate {seconds[0]:.2f} s, bare {seconds[1]:.2f} s", file=sys.stderr)
    return ratios


def run_evaluate(suite: tuple[str, str], output: Path) -> None:
    """The verb's function, in this process."""
    settings = sprites()
    request = Request(
        suite="own",
        base=settings.base,
        output=str(output),
        adapters=(str(settings.adapter),),
        subjects=suite[0],
        prompts=suite[1],
        metrics=COLUMNS,
        rows=("subject_with_mask", "oracle"),
        sampling=SamplingParams(seed=0),
        where=Where(),
    )
    evaluate(request, replace(settings, evaluate=replace(settings.evaluate, batch_size=BATCH)))


def run_bare(suite: tuple[str, str]) -> None:
    """The same sampler calls, and the same pictures and texts through the same models, with nothing kept."""
    settings, store = sprites(), Store()
    cases = read_own(*suite, store, images_per_prompt=settings.evaluate.images_per_prompt, seed=0).cases
    photos = {
        photo.uri: decode(store.read(photo.uri), photo.uri) for case in cases for photo in case.references[0].photos
    }
    with torch_threads(settings.evaluate.threads):
        pipe = RealCustomPipeline.from_pretrained(
            settings.base, adapter=settings.adapter, image_encoder=settings.method.image_encoder.model, device="cpu"
        )
        pipe.set_progress_bar_config(disable=True)
        drawn: list[Image.Image] = []
        for start in range(0, len(cases), BATCH):
            batch = cases[start : start + BATCH]
            drawn += draw(pipe, _call(batch, photos)).images
        pictures = [*drawn, *photos.values()]
        clip, dino = Clip(CLIP, "cpu"), Dino(DINO, "cpu")
        clip.pictures(pictures)
        clip.texts(sorted({case.prompt for case in cases}))
        dino.pictures(pictures)


def _call(cases: Sequence[SuiteCase], photos: dict[str, Image.Image]) -> Call:
    given = [case.references[0] for case in cases]
    return Call(
        prompt=[case.prompt for case in cases],
        subjects=[[Subject(image=photos[one.given.uri], word=one.word)] for one in given],
        sampling=SamplingParams(),
        generator=[torch.Generator().manual_seed(case.seed) for case in cases],
    )


def rerun(folder: Path, share: float) -> tuple[list[float], int]:
    """Seconds of the command with all of its images and values there, and their number."""
    prompts = dreambench.OBJECT_PROMPTS[: max(1, round(25 * share))]
    suite = write_suite(folder, 30, prompts)
    line = command(suite, folder / "output", steps=1)
    seconds = []
    for _ in range(1 + RERUNS):
        start = time.perf_counter()
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, cwd=record.ROOT)
        seconds.append(time.perf_counter() - start)
        print(f"{seconds[-1]:.2f} s", file=sys.stderr)
    images = len(list((folder / "output" / "images").glob("*.png")))
    assert images == 30 * len(prompts) * 4
    return seconds[1:], images  # the first one draws


def pss_growth(folder: Path, share: float) -> float:
    """Peak PSS with ten times the images over that with one time."""
    peaks, subjects = [], max(2, round(30 * share))
    for prompts in (1, 10):
        suite = write_suite(folder / str(prompts), subjects, dreambench.OBJECT_PROMPTS[:prompts])
        line = command(suite, folder / f"output-{prompts}", steps=4)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        peaks.append(process_tree.run(line, record.ROOT, environment, memory=True).peak_pss)
        print(f"{subjects * prompts * 4} images: {peaks[-1] / 1e6:.0f} MB", file=sys.stderr)
    return peaks[1] / peaks[0]


def drawn_minutes(folder: Path, share: float) -> float:
    """Minutes of the drawn suite from nothing."""
    settings = [
        part
        for text in (f"evaluate.images={max(2, round(256 * share))}", f"evaluate.batch_size={BATCH}")
        for part in ("--set", text)
    ]
    line = [sys.executable, "-m", "realcustom", "evaluate", "--suite", "drawn", "--output", str(folder / "output")]
    start = time.perf_counter()
    out = subprocess.run(
        [*line, "--workers", "2", *settings], check=True, capture_output=True, text=True, cwd=record.ROOT
    )
    print(out.stdout, file=sys.stderr)
    return (time.perf_counter() - start) / 60


def agreement() -> tuple[float, str]:
    """The largest difference, and what it is a difference to."""
    scenes = [world.scene(world.Split.EVALUATION, 31 * index) for index in range(AGREEING)]
    pictures = [Image.fromarray(world.draw(scene).image) for scene in scenes]
    texts = [scene.caption for scene in scenes]
    ours, dino = Clip(CLIP, "cpu"), Dino(DINO, "cpu").pictures(pictures)
    images, prompts = ours.pictures(pictures), ours.texts(texts)
    hand_images, hand_texts = clip_by_hand(pictures, texts)
    differences = [
        np.abs((images * prompts).sum(1) - (hand_images * hand_texts).sum(1)).max(),
        np.abs(images @ images.T - hand_images @ hand_images.T).max(),
        np.abs(dino @ dino.T - (hand := dino_by_hand(pictures)) @ hand.T).max(),
    ]
    other = "transformers' whole forward"
    theirs = by_torchmetrics(pictures, texts)
    if theirs is not None:
        differences.append(np.abs((images * prompts).sum(1) - theirs).max())
        other += " and torchmetrics' CLIPScore"
    return float(max(differences)), other


def clip_by_hand(pictures: Sequence[Image.Image], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """One at a time."""
    model = CLIPModel.from_pretrained(CLIP).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(CLIP), AutoTokenizer.from_pretrained(CLIP)
    length = model.config.text_config.max_position_embeddings
    found = []
    with torch.no_grad():
        for picture, text in zip(pictures, texts, strict=True):
            tokens = tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
            output = model(**tokens, pixel_values=processor(picture, return_tensors="pt").pixel_values)
            found.append((output.image_embeds[0].double().numpy(), output.text_embeds[0].double().numpy()))
    return tuple(np.stack([v / np.linalg.norm(v) for v in side]) for side in zip(*found, strict=True))  # type: ignore[return-value]


def dino_by_hand(pictures: Sequence[Image.Image]) -> np.ndarray:
    """One at a time."""
    model = transformers.CLIPVisionModel.from_pretrained(DINO).eval()
    processor = CLIPImageProcessorPil.from_pretrained(DINO)
    with torch.no_grad():
        states = [model(**processor(picture, return_tensors="pt")).last_hidden_state[0, 0] for picture in pictures]
    vectors = torch.stack(states).double().numpy()
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def by_torchmetrics(pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray | None:
    """CLIPScore of each pair over 100, which is the cosine where that is above 0; None where it is not installed."""
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore  # type: ignore[import-not-found]
    except ImportError:
        return None

    class Tensors(CLIPModel):  # type: ignore[misc]
        """As torchmetrics takes it: these gave tensors before transformers 5."""

        def get_image_features(self, *arguments: Any, **named: Any) -> torch.Tensor:
            return super().get_image_features(*arguments, **named).pooler_output  # type: ignore[no-any-return]

        def get_text_features(self, *arguments: Any, **named: Any) -> torch.Tensor:
            return super().get_text_features(*arguments, **named).pooler_output  # type: ignore[no-any-return]

    def model() -> tuple[Any, Any]:
        processor = transformers.CLIPProcessor(
            CLIPImageProcessorPil.from_pretrained(CLIP), AutoTokenizer.from_pretrained(CLIP)
        )
        return Tensors.from_pretrained(CLIP), processor

    found = []
    for picture, text in zip(pictures, texts, strict=True):
        metric = CLIPScore(model_name_or_path=model)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        found.append(float(metric(pixels, text).detach()) / 100)
    return np.array(found)


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=METRICS, action="append", help="measure just this (repeatable)")
    parser.add_argument("--tiny", action="store_true", help="a twentieth of the images; nothing is written")
    options = parser.parse_args()
    wanted, share = options.only or METRICS, 0.05 if options.tiny else 1.0
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not record.is_clean(("realcustom", "evaluation", "pipeline", "benchmarks/*.py")):
        print("the code differs from the commit that the records will name", file=sys.stderr)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="realcustom-evaluation-") as temporary:
        for metric in wanted:
            value, unit, n, spread, note = measure(metric, Path(temporary) / metric, share)
            print(f"{metric}: {value:.4g} {unit} {note}", file=sys.stderr)
            line = f"python benchmarks/evaluation.py --only {metric}"
            made = record.record(metric, value, unit, n=n, spread=spread, command=line, commit=record.head())
            if metric == "evaluate_metric_agreement":
                made |= {"against": note}
            if not options.tiny:
                record.write(RESULTS, [made])


def measure(metric: str, folder: Path, share: float) -> tuple[float, str, int, tuple[float, float] | None, str]:
    """Value, unit, number, spread and a note."""
    if metric == "evaluate_overhead":
        ratios = overhead(folder, share)
        low, high = np.quantile(ratios, [0.05, 0.95])
        return statistics.median(ratios), "ratio", len(ratios), (float(low), float(high)), ""
    if metric == "evaluate_rerun_seconds":
        seconds, images = rerun(folder, share)
        return statistics.median(seconds), "s", len(seconds), (min(seconds), max(seconds)), f"of {images} images"
    if metric == "evaluate_pss_growth":
        return pss_growth(folder, share), "ratio", 1, None, ""
    if metric == "evaluate_drawn_minutes":
        return drawn_minutes(folder, share), "min", 1, None, ""
    value, other = agreement()
    return value, "abs", AGREEING, (0.0, value), other


if __name__ == "__main__":
    main()
