"""Train the zoo from scratch.

    python -m realcustom.sprites.train NAME|all [--steps N] [--output sprites/zoo] [--work outputs/zoo]

Each recipe resumes where it stopped from its checkpoint in the work folder, and needs nothing but a CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from realcustom.sprites import ZOO, base, blip, clip, grounding_dino, heads, image_encoder, judge, sam

Recipe = Callable[[Path, Path, int | None], None]  # output folder, work folder, steps (None: the recipe's own)

RECIPES: dict[str, Recipe] = {
    "judge": judge.train,
    "pipeline": base.train,
    "image_encoder": image_encoder.train,
    "clip": clip.train,
    "heads": heads.train,
    "blip": blip.train,
    "grounding_dino": grounding_dino.train,
    "sam": sam.train,
}


def main(arguments: list[str] | None = None) -> None:
    """Train one recipe or all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m realcustom.sprites.train", description="Train the zoo's models from scratch."
    )
    parser.add_argument("name", choices=[*RECIPES, "all"])
    parser.add_argument("--steps", type=int, help="stop after so many steps (default: the recipe's own number)")
    parser.add_argument("--output", type=Path, default=ZOO, help="where the models go, one folder each")
    parser.add_argument("--work", type=Path, default=Path("outputs/zoo"), help="where the checkpoints lie")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in RECIPES if options.name == "all" else (options.name,):
        start, cpu = time.monotonic(), time.process_time()
        RECIPES[name](options.output / name, options.work / name, options.steps)
        print(
            f"{name}: done in {(time.monotonic() - start) / 60:.1f} min ({(time.process_time() - cpu) / 60:.1f} of CPU), "
            f"saved in {options.output / name}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
