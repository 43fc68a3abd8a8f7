"""What `realcustom evaluate` is asked for, read and checked before anything is drawn or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from realcustom import config, storage
from realcustom.errors import UsageError, require_all
from realcustom.evaluation import published, suites
from realcustom.evaluation.given import given_images
from realcustom.evaluation.methods import (
    ORACLE,
    AdapterFile,
    name_and_place,
    named_adapters,
)
from realcustom.evaluation.metrics import Judged
from realcustom.evaluation.suite import Suite
from realcustom.evaluation.table import Setting
from realcustom.pipeline.evaluate.drawing import Where
from realcustom.pipeline.inputs import image_encoder_for, require_base, require_path
from realcustom.pipeline.recipes import RunSettings
from realcustom.sampling import SamplingParams
from realcustom.settings import Reference as ReferenceKind
from realcustom.store import Store

SETTINGS_FILE = "settings.yaml"
SUITES = ("dreambench", "own", "dreambench_plus", "omnicontext", "drawn")
USUAL_ROWS = (Setting.TEXT_TO_IMAGE, Setting.SUBJECT_WITH_MASK, Setting.ORACLE)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is evaluated."""

    suite: str  # of `SUITES`
    base: str
    output: str
    adapters: tuple[str, ...] = ()  # FILE or NAME=FILE; in the place of FILE a training run
    images: tuple[str, ...] = ()  # FOLDER or NAME=FOLDER: somebody else's pictures
    image_encoder: str | None = None
    subjects: str | None = None  # folder of the suite
    prompts: str | None = None  # of the suite `own`
    metrics: tuple[str, ...] = ()  # empty: the suite's usual ones
    rows: tuple[str, ...] = ()  # empty: the suite's usual ones
    limit: int | None = None
    sampling: SamplingParams
    where: Where


def check_places(request: Request) -> None:
    """Raise UsageError for an unknown suite, or one whose folder or prompts are not named."""
    if request.suite not in SUITES:
        raise UsageError(f"--suite: there is no '{request.suite}'; there are {', '.join(SUITES)}")
    if request.suite != "drawn" and request.subjects is None:
        raise UsageError(f"--suite {request.suite} needs --subjects, the folder of its pictures")
    if request.suite == "own" and request.prompts is None:
        raise UsageError("--suite own needs --prompts, a text file with a prompt a line and {} for the subject's word")


def read_suite(request: Request, settings: RunSettings, store: Store) -> Suite:
    """The suite that the request names, limited. Raises UsageError as its reader."""
    count = {"images_per_prompt": settings.evaluate.images_per_prompt, "seed": request.sampling.seed or 0}
    if request.suite == "drawn":
        from realcustom.pipeline.evaluate.drawn import drawn_suite

        images = settings.evaluate.images if request.limit is None else request.limit
        return drawn_suite(storage.join(request.output, "subjects"), images, store).limited(None)
    assert request.subjects is not None, "checked by check_places"
    if request.suite == "own":
        assert request.prompts is not None, "checked by check_places"
        suite = suites.read_own(request.subjects, request.prompts, store, **count)
    elif request.suite == "dreambench":
        suite = suites.read_dreambench(request.subjects, store, **count)
    elif request.suite == "dreambench_plus":
        suite = published.read_dreambench_plus(request.subjects, store, **count)
    else:
        pictures = storage.join(request.output, "subjects")
        suite = published.read_omnicontext(request.subjects, pictures, store, **count)
    return suite.limited(request.limit)


def read_adapters(request: Request, settings: RunSettings, store: Store) -> list[AdapterFile]:
    """The adapters, checked. Raises UsageError for one of another base."""
    from realcustom.pipeline.evaluate.training_run import with_runs  # imports torch

    files = named_adapters(list(with_runs(request.adapters, store)))
    if not files and not request.images:
        raise UsageError("--adapter: none given, and no --images: there is nothing to evaluate")
    if not files:
        return []
    checks = [partial(require_path, file, "--adapter", "adapter checkpoint") for file in files.values()]
    require_all(partial(require_base, request.base), *checks)
    from realcustom.checkpoint import adapter_sha256, read_header
    from realcustom.identity import model_identity

    base = model_identity(request.base)
    found = []
    for name, file in files.items():
        header = read_header(file, store)
        if _differ(header.base, base):
            raise UsageError(
                f"--adapter {file} was trained for the base {header.base}, this is {base}: give its own --base"
            )
        sampler = {
            "sampler": config.to_dict(header.settings.sampler),
            "guidance": config.to_dict(header.settings.guidance),
        }
        encoder = image_encoder_for(file, request.image_encoder, settings.method.image_encoder.model)
        found.append(
            AdapterFile(
                name=name,
                file=file,
                sha256=adapter_sha256(file, store),
                sampler=sampler,
                cut_out=header.settings.image_encoder.reference is ReferenceKind.CROP,
                image_encoder=encoder,
            )
        )
    return found


def _differ(trained_for: str, base: str) -> bool:
    """Whether two bases are certainly not the same: folders of other content, or hub models of other names. The library
    warns of what cannot be known: a folder and a hub model, two revisions.
    """
    folders = ["@sha256-" in identity for identity in (trained_for, base)]
    if all(folders):
        return trained_for.rpartition("@")[2] != base.rpartition("@")[2]
    return not any(folders) and trained_for.partition("@")[0] != base.partition("@")[0]


def read_rows(request: Request) -> tuple[Setting, ...]:
    """The settings of the rows, in the table's order. Raises UsageError for a name that is none."""
    if not request.rows:
        return tuple(Setting) if request.suite == "drawn" else USUAL_ROWS
    names = [setting.value for setting in Setting]
    for name in request.rows:
        if name not in names:
            raise UsageError(f"--row: there is no '{name}'; there are {', '.join(names)}")
    return tuple(setting for setting in Setting if setting.value in request.rows)


def decided_by(request: Request, settings: RunSettings) -> dict[str, Any]:
    """What decides an image's pixels beside its adapter and its case."""
    from realcustom.identity import model_identity

    sampling = {name: value for name, value in config.to_dict(request.sampling).items() if name != "seed"}
    encoder = None if request.image_encoder is None else model_identity(request.image_encoder)
    device = request.where.device_kind()
    return {
        "base": model_identity(request.base),
        "image_encoder": encoder,
        "sampling": sampling,
        "batch_size": settings.evaluate.batch_size,
        "device": device,
        "threads": settings.evaluate.threads if device == "cpu" else None,
    }


def read_given(request: Request, suite: Suite, taken: set[str], store: Store) -> list[Judged]:
    """Somebody else's pictures, and their rows' names added to `taken`. Raises UsageError for a name that is taken."""
    found: list[Judged] = []
    for text in request.images:
        name, folder = name_and_place(text)
        if name in taken or name == ORACLE:
            raise UsageError(f"--images {text}: there is a row called '{name}' already; give NAME=FOLDER")
        taken.add(name)
        found += given_images(name, folder, suite.cases, store)
    return found


def check_output(output: str, run: Mapping[str, str], store: Store) -> None:
    """Raise UsageError for an output that holds another run, by its suite and base, or other files."""
    place = storage.join(output, SETTINGS_FILE)
    if not store.exists(place):
        foreign = store.list_names(output)
        if foreign:
            raise UsageError(f"--output: {output} holds other files ({foreign[0]} ...); name a new folder")
        return
    there = yaml.safe_load(store.read(place)) or {}
    its = {"suite": (there.get("suite") or {}).get("name"), "base": there.get("base")}
    for name, mine in run.items():
        if its[name] != mine:
            raise UsageError(
                f"--output: {output} holds another run, of the {name} {its[name]}, not {mine}; name a new folder"
            )
