"""A small suite of the drawn world in the layout of one's own: subjects with several pictures, masks known exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from realcustom.evaluation.given import stem_of
from realcustom.evaluation.suite import Suite, SuiteCase
from realcustom.evaluation.suites import read_own
from realcustom.sprites import world
from realcustom.store import Store

PHOTOS = 3  # real pictures of a subject
PROMPTS = ("a {} at the top on grass", "a {} at the left on snow", "snow with a {} at the bottom")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnSuite:
    """A folder of subjects, and how each was drawn."""

    folder: Path
    prompts: Path
    scenes: dict[str, list[world.Scene]]  # of each subject's pictures

    def read(self, images_per_prompt: int = 2) -> Suite:
        """As the command reads it."""
        return read_own(str(self.folder), str(self.prompts), Store(), images_per_prompt=images_per_prompt, seed=0)


def write_suite(folder: Path, subjects: int = 4, masks: bool = True) -> DrawnSuite:
    """`subjects` folders of `PHOTOS` pictures, subjects.csv and prompts.txt below `folder`."""
    scenes: dict[str, list[world.Scene]] = {}
    lines = ["subject,class"]
    for index in range(subjects):
        first = world.scene(world.Split.EVALUATION, 7 * index)
        identity = first.subjects[0].identity
        name = f"{identity.noun}-{index}"
        others = [world.scene(world.Split.EVALUATION, 7 * index + number) for number in range(1, PHOTOS)]
        scenes[name] = [first, *(world.same_scene_with(scene, identity) for scene in others)]
        lines.append(f"{name},{identity.noun}")
        for number, scene in enumerate(scenes[name]):
            write_drawing(folder / "subjects" / name / f"{number:02}.png", scene, masks)
    (folder / "subjects" / "subjects.csv").write_text("\n".join(lines) + "\n")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return DrawnSuite(folder=folder / "subjects", prompts=folder / "prompts.txt", scenes=scenes)


def write_drawing(path: Path, scene: world.Scene, mask: bool = True) -> None:
    """A picture as PNG, and its first subject's mask beside it."""
    drawing = world.draw(scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing.image).save(path)
    if mask:
        Image.fromarray(drawing.masks[0]).save(path.with_suffix(".mask.png"))


def draw_method(folder: Path, suite: Suite, scene_of: Callable[[SuiteCase, int], world.Scene]) -> str:
    """Somebody else's pictures: the scene that a method draws for each case and the number of its subject."""
    subjects = sorted({case.subject for case in suite.cases})
    for case in suite.cases:
        write_drawing(folder / f"{stem_of(case)}.png", scene_of(case, subjects.index(case.subject)))
    return str(folder)
