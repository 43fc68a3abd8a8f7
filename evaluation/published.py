"""Published suites with one picture a subject: DreamBench++ and OmniContext, in the layouts as they are distributed."""

from __future__ import annotations

import csv
import hashlib
import io
import posixpath
import re
from collections import Counter
from typing import Any

import pyarrow as pa

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.evaluation.suite import Photo, Reference, Suite, SuiteCase, with_wrong_references
from realcustom.parquet import ParquetFile
from realcustom.store import Store

PLUS_PICTURES, PLUS_PROMPTS = 150, 9  # of DreamBench++ (Peng et al. 2024)
OMNI_TASKS = (  # of OmniContext (Wu et al. 2025), 50 rows each
    *("single_character", "single_object", "multi_character", "multi_object", "multi_character_object"),
    *("scene_character", "scene_object", "scene_character_object"),
)
OMNI_ROWS = 50
OMNI_COLUMNS = ("key", "task_type", "instruction", "input_images")
WORDS_FILE = "words.csv"


def read_dreambench_plus(folder: str, store: Store, *, images_per_prompt: int, seed: int) -> Suite:
    """DreamBench++: images/KIND/NN.jpg, and captions/KIND/NN.txt with the subject's word and then 9 prompts, a line each.

    Raises UsageError for another number of pictures or prompts, a picture without its captions, or a prompt without its
    subject's word.
    """
    names = [entry.name for entry in store.list_files(storage.join(folder, "images")) if entry.name.endswith(".jpg")]
    if len(names) != PLUS_PICTURES:
        raise UsageError(f"{folder}: DreamBench++ has {PLUS_PICTURES} pictures, here are {len(names)} in images/")
    cases: list[SuiteCase] = []
    kinds: Counter[str] = Counter()
    for name in names:
        stem = posixpath.splitext(name)[0]
        kind = posixpath.basename(posixpath.dirname(stem))
        kinds[kind] += 1
        uri = storage.join(folder, "captions", f"{stem}.txt")
        word, prompts = _captions(uri, store)
        photo = Photo(uri=storage.join(folder, "images", name))
        reference = Reference(subject=stem.replace("/", "_"), word=word, given=photo, photos=(photo,))
        cases += [
            SuiteCase(
                references=(reference,),
                prompt=prompt,
                prompt_id=f"{index}",
                seed=seed + number,
                number=number,
                group=kind,
            )
            for index, prompt in enumerate(prompts)
            for number in range(images_per_prompt)
        ]
    shares = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    counts = f"dreambench_plus: {len(names)} pictures ({shares}) x {PLUS_PROMPTS} prompts x {images_per_prompt} images"
    return Suite(name="dreambench_plus", cases=with_wrong_references(cases), counts=f"{counts} = {len(cases)}")


def _captions(uri: str, store: Store) -> tuple[str, list[str]]:
    """The word and the prompts of a file."""
    lines = [line.strip() for line in store.read(uri).decode("utf-8", "replace").splitlines()]
    lines = lines[: len(lines) - next((i for i, line in enumerate(reversed(lines)) if line), len(lines))]
    if len(lines) != 1 + PLUS_PROMPTS:
        raise UsageError(f"{uri} has {len(lines)} lines, DreamBench++ has the word and {PLUS_PROMPTS} prompts")
    word, prompts = lines[0], lines[1:]
    for number, prompt in enumerate(prompts, 2):
        require_word(word, prompt, f"{uri}, line {number}")
    return word, prompts


def require_word(word: str, prompt: str, where: str) -> None:
    """Raise UsageError, naming the place, for a prompt without its word. The pipeline has the exact rule."""
    if not word or not re.search(rf"(?<!\w){re.escape(word)}(?:e?s)?(?!\w)", prompt, re.IGNORECASE):
        raise UsageError(f"{where}: the word '{word}' is not in the prompt '{prompt}'")


def read_omnicontext(folder: str, pictures: str, store: Store, *, images_per_prompt: int, seed: int) -> Suite:
    """OmniContext: Parquet tables with key, task_type, instruction and input_images; several subjects in most tasks.

    The suite says which picture is shown, not which word it is: words.csv beside the tables has the columns key and words,
    the words of a row's pictures in their order, separated by `;`. A key without a row in it is left out, and counted.

    Args:
        pictures: folder to which the tables' pictures are written, named by their content.
    Raises:
        UsageError: another number of rows of a task, no words.csv, a word that its instruction lacks, or a number of words
            that is not that of the pictures.
    """
    rows = _omni_rows(folder, store)
    words = _omni_words(storage.join(folder, WORDS_FILE), store)
    cases: list[SuiteCase] = []
    for row in rows:
        if row["key"] not in words:
            continue
        where, given = words[row["key"]]
        if len(given) != len(row["input_images"]):
            raise UsageError(f"{where}: {len(given)} words for the {len(row['input_images'])} pictures of {row['key']}")
        references = []
        for index, (word, image) in enumerate(zip(given, row["input_images"], strict=True)):
            require_word(word, row["instruction"], where)
            photo = Photo(uri=_written(image, pictures, store))
            references.append(Reference(subject=f"{row['key']}-{index}", word=word, given=photo, photos=(photo,)))
        cases += [
            SuiteCase(
                references=tuple(references),
                prompt=row["instruction"],
                prompt_id="0",
                seed=seed + number,
                number=number,
                group=row["task_type"],
            )
            for number in range(images_per_prompt)
        ]
    taken = len(cases) // images_per_prompt
    counts = f"omnicontext: {taken} of {len(rows)} rows have words, x {images_per_prompt} images = {len(cases)}"
    return Suite(name="omnicontext", cases=with_wrong_references(cases), counts=counts)


def _omni_rows(folder: str, store: Store) -> list[dict[str, Any]]:
    tables = [entry.uri for entry in store.list_files(folder) if entry.name.endswith(".parquet")]
    if not tables:
        raise UsageError(f"{folder}: OmniContext is Parquet tables, and here is none")
    rows: list[dict[str, Any]] = []
    for uri in tables:
        file = ParquetFile(uri, store)
        missing = [name for name in OMNI_COLUMNS if name not in file.schema.names]
        if missing:
            raise UsageError(f"{uri} lacks the column {missing[0]} of OmniContext")
        table: pa.Table = file.read(OMNI_COLUMNS)
        rows += table.to_pylist()
    counted = Counter(row["task_type"] for row in rows)
    wrong = [task for task in {*OMNI_TASKS, *counted} if counted[task] != (OMNI_ROWS if task in OMNI_TASKS else 0)]
    if wrong:
        task = sorted(wrong)[0]
        raise UsageError(
            f"{folder}: OmniContext has {OMNI_ROWS} rows of each of its tasks, here are {counted[task]} of {task}"
        )
    return sorted(rows, key=lambda row: str(row["key"]))


def _omni_words(uri: str, store: Store) -> dict[str, tuple[str, list[str]]]:
    """Place and words by key."""
    if not store.exists(uri):
        raise UsageError(
            f"OmniContext does not say which words its pictures are: write {uri} with the columns key and words"
        )
    reader = csv.DictReader(io.StringIO(store.read(uri).decode("utf-8-sig", "replace")))
    if reader.fieldnames is None or not {"key", "words"} <= set(reader.fieldnames):
        raise UsageError(f"{uri} needs the columns key and words")
    return {
        row["key"]: (f"{uri}, line {number}", [word.strip() for word in row["words"].split(";")])
        for number, row in enumerate(reader, 2)
    }


def _written(image: Any, folder: str, store: Store) -> str:
    """The URI of a table's picture as a file."""
    data = image["bytes"] if isinstance(image, dict) else image
    uri = storage.join(folder, f"{hashlib.sha256(data).hexdigest()[:24]}.png")
    if not store.exists(uri):
        store.write(uri, data)
    return uri
