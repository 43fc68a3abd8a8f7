"""Other ways to the same pictures, from the same noise in the same number of steps, and what fine-tuning a subject buys.

    python benchmarks/drawn_baselines.py                    # about 30 minutes on one core; goes on where it stopped
    python benchmarks/drawn_baselines.py --only untuned     # without fine-tuning

Table `untuned`: text alone, the method, no mask, the method under diffusers' guidance, diffusers' IP-Adapter with our keys
and values with and without a given mask (the box of the true object), the true silhouette as our mask, another subject's
picture, new weights, the true drawing. Table `tuned`: LoRA and DreamBooth on 1 or 4 pictures of each subject, after 100 and
500 steps, with the seconds of its training on one thread, beside the method on the same questions. Writes
benchmarks/results/drawn/drawn_baselines.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import record
import torch
from drawn_methods import baselines, cases_of, customised, graded, mixed_cases, only, plain
from drawn_tables import Row, interval, kept_answers, resample, write_table
from fine_tuning import Training, fine_tuned, pixels
from synthetic_world import shipped

from realcustom.evaluation.table import Case
from realcustom.sprites import zoo_path
from realcustom.sprites.judge import Judge
from realcustom.sprites.questions import Kind

RESULTS = record.RESULTS / "drawn" / "drawn_baselines.json"
SCORES = ("similarity", "noun", "background", "place_error", "background_error", "background_colour")
TRAININGS: Mapping[str, Training] = {
    "lora_1_picture": Training(),
    "lora_4_pictures": Training(views=4),
    "dreambooth_4_pictures": Training(views=4, rank=0, prior=True, lr=3e-4),
}


def row(name: str, drawn: np.ndarray, cases: Sequence[Case]) -> Row:
    """A method's means and intervals."""
    found, counts = graded(Judge.load(zoo_path("judge")), drawn, cases), resample(cases)
    return {
        "method": name,
        "images": len(cases),
        **{score: interval(getattr(found, score), counts) for score in SCORES},
    }


def untuned(images: int, work: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """The baselines that train nothing; their pictures are those of benchmarks/metric_validity.py."""
    cases = mixed_cases(images)
    for name, method in only(baselines(), wanted).items():
        yield row(name, kept_answers(work / f"{name}-{images}.npy", lambda method=method: method, cases), cases)  # type: ignore[misc]


def tuned(subjects: int, work: Path) -> Iterator[Row]:
    """Fine-tuning of each subject, beside the method and text alone."""
    cases = cases_of(Kind.CONTRADICTION, subjects)
    for name, make in (("plain", lambda: plain(shipped())), ("masked", lambda: customised(shipped()))):
        yield row(name, kept_answers(work / f"tuned-{name}-{subjects}.npy", make, cases), cases)
    for name, training in TRAININGS.items():
        stops = [of_subject(case, name, training, work) for case in cases]
        for number, steps in enumerate(training.stops):
            seconds = [stop[number][1] for stop in stops]
            drawn = np.stack([stop[number][0] for stop in stops])
            measured = {"steps": steps, "seconds": interval(np.array(seconds), resample(cases), digits=1)}
            yield {**row(name, drawn, cases), **measured}


def of_subject(case: Case, name: str, training: Training, work: Path) -> list[tuple[np.ndarray, float]]:
    """Picture and seconds at each stop, kept in a file."""
    path = work / f"{name}-{case.uid}.npz"
    if not path.exists():
        stops = list(fine_tuned(case, training))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, images=pixels(stops), seconds=[stop.seconds for stop in stops])
        temporary.replace(path)
        print(f"  {name} {case.uid}: {json.dumps([round(stop.seconds, 1) for stop in stops])} s", file=sys.stderr)
    kept = np.load(path)
    return list(zip(kept["images"], kept["seconds"].tolist(), strict=True))


def main() -> None:
    """Draw what is missing, score it, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("untuned", "tuned"), nargs="+", default=("untuned", "tuned"))
    parser.add_argument("--images", type=int, default=84, help="of each method that trains nothing")
    parser.add_argument("--methods", nargs="+", default=(), metavar="NAME", help="just these of the untuned")
    parser.add_argument("--subjects", type=int, default=12, help="that are fine-tuned")
    parser.add_argument("--work", type=Path, default=Path("outputs/drawn_methods"), help="where pictures are kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python benchmarks/drawn_baselines.py --images {options.images} --subjects {options.subjects}"
    command += f" --methods {' '.join(options.methods)}" if options.methods else ""
    if "untuned" in options.only:
        write_table(options.output, "untuned", untuned(options.images, options.work, options.methods), command)
    if "tuned" in options.only:
        write_table(options.output, "tuned", tuned(options.subjects, options.work), command)


if __name__ == "__main__":
    main()
