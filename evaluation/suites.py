"""Suites of a folder per subject: DreamBench, and one's own."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.evaluation import dreambench
from realcustom.evaluation.suite import (
    EXTENSIONS,
    Photo,
    Reference,
    Suite,
    SuiteCase,
    photos_among,
    with_wrong_references,
)
from realcustom.store import Store

SUBJECTS_FILE = "subjects.csv"
PLACE = "{}"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A line of a list of prompts."""

    text: str  # with `{}` where the subject's word stands
    id: str
    where: str  # for messages


def read_own(folder: str, prompts: str, store: Store, *, images_per_prompt: int, seed: int) -> Suite:
    """One's own suite: a folder per subject, and a text file with a prompt a line, `{}` for the word.

    A subject's word stands in the column `class` of a subjects.csv beside the folders (with a column `subject`), else it
    is the folder's name. Raises UsageError for a line without `{}`, a folder without a picture, fewer than two subjects.
    """
    words = _listed(folder, store)
    found = {entry.name.split("/")[0] for entry in store.list_files(folder) if "/" in entry.name}
    if words is None:
        words = {name: {"class": name.replace("_", " ")} for name in sorted(found)}
    lines = read_prompts(prompts, store)
    cases = [
        case
        for name, row in words.items()
        for case in _cases(name, row["class"], _photos(folder, name, store), lines, "", images_per_prompt, seed)
    ]
    counts = f"own: {len(words)} subjects x {len(lines)} prompts x {images_per_prompt} images = {len(cases)}"
    return Suite(name="own", cases=with_wrong_references(cases), counts=counts)


def read_dreambench(folder: str, store: Store, *, images_per_prompt: int, seed: int) -> Suite:
    """DreamBench in its published layout: a folder per subject with 00.jpg, 01.jpg ...; the first one is given.

    All 30 subjects are asked for, or those that a subjects.csv in the folder lists (columns subject, class, live).
    Raises UsageError for a subject that is missing, or unknown.
    """
    listed = _listed(folder, store)
    words = {name: row["class"] for name, row in listed.items()} if listed is not None else dreambench.CLASSES
    unknown = [name for name in words if name not in dreambench.CLASSES]
    if unknown:
        raise UsageError(f"{storage.join(folder, SUBJECTS_FILE)}: DreamBench has no subject '{unknown[0]}'")
    lists = {"live": dreambench.LIVE_PROMPTS, "object": dreambench.OBJECT_PROMPTS}
    prompts = {
        kind: [
            Prompt(text=text, id=f"{number:02}", where=f"prompt {number} ({kind})") for number, text in enumerate(texts)
        ]
        for kind, texts in lists.items()
    }
    cases: list[SuiteCase] = []
    photos = {name: _photos(folder, name, store) for name in words}
    for name, word in words.items():
        kind = "live" if name in dreambench.LIVE_CLASSES else "object"
        cases += _cases(name, word, photos[name], prompts[kind], kind, images_per_prompt, seed)
    live = sum(name in dreambench.LIVE_CLASSES for name in words)
    counts = (
        f"dreambench: {len(words)} of {len(dreambench.CLASSES)} subjects ({live} live, {len(words) - live} objects) with "
        f"{sum(map(len, photos.values()))} pictures x {len(dreambench.LIVE_PROMPTS)} prompts x {images_per_prompt} images = "
        f"{len(cases)}"
    )
    return Suite(name="dreambench", cases=with_wrong_references(cases), counts=counts)


def read_prompts(uri: str, store: Store) -> list[Prompt]:
    """The lines of a text file; empty ones are skipped. Raises UsageError for a line without `{}`, or without any."""
    lines: list[Prompt] = []
    for number, line in enumerate(store.read(uri).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        if line.count(PLACE) != 1:
            raise UsageError(
                f"{uri}, line {number}: '{line.strip()}' has no {PLACE} (once) where the subject's word stands"
            )
        lines.append(Prompt(text=line.strip(), id=f"{len(lines):02}", where=f"{uri}, line {number}"))
    if not lines:
        raise UsageError(f"{uri} holds no prompt")
    return lines


def _cases(
    subject: str,
    word: str,
    photos: Sequence[Photo],
    prompts: Sequence[Prompt],
    group: str,
    images_per_prompt: int,
    seed: int,
) -> list[SuiteCase]:
    reference = Reference(subject=subject, word=word, given=photos[0], photos=tuple(photos))
    return [
        SuiteCase(
            references=(reference,),
            prompt=prompt.text.replace(PLACE, word),
            prompt_id=prompt.id,
            seed=seed + number,
            number=number,
            group=group,
        )
        for prompt in prompts
        for number in range(images_per_prompt)
    ]


def _photos(folder: str, subject: str, store: Store) -> list[Photo]:
    """A subject's pictures by name, with their masks. Raises UsageError where there is none."""
    place = storage.join(folder, subject)
    photos = photos_among([storage.join(place, name) for name in store.list_names(place)])
    if not photos:
        raise UsageError(f"the subject '{subject}' is missing: no picture ({', '.join(EXTENSIONS)}) in {place}")
    return photos


def _listed(folder: str, store: Store) -> dict[str, Mapping[str, str]] | None:
    """The rows of subjects.csv by subject, where there is one. Raises UsageError for one without its columns."""
    uri = storage.join(folder, SUBJECTS_FILE)
    if not store.exists(uri):
        return None
    rows = list(csv.DictReader(io.StringIO(store.read(uri).decode("utf-8-sig", "replace"))))
    if not rows or not {"subject", "class"} <= rows[0].keys():
        raise UsageError(f"{uri} needs the columns subject and class, and a row for each subject")
    return {row["subject"]: row for row in rows}
