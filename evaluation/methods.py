"""Methods that are compared, and the key of an image: a hash of all that decides its pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from realcustom.errors import UsageError
from realcustom.evaluation.suite import Photo, Photos, Reference, SuiteCase
from realcustom.evaluation.table import Setting

ORACLE = "oracle"  # the row of real pictures, or of the right answers
TEXT_ALONE = "text_to_image"
WRONG = " wrong reference"  # ends the name of a row whose subjects are meant to be others
ROWS = {
    Setting.SUBJECT_WITH_MASK: "",
    Setting.SUBJECT_WITHOUT_MASK: " without mask",
    Setting.WRONG_REFERENCE: WRONG,
}


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter that is evaluated."""

    name: str  # of its rows
    file: str  # path or URI
    sha256: str
    sampler: Mapping[str, Any]  # plain data: what of its settings also acts on text alone
    cut_out: bool = False  # whether it is shown subjects cut out on white, for which they need masks
    image_encoder: str | None = None  # folder or hub id to load; None = the one that the adapter names


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row: an adapter under a setting, or somebody else's pictures."""

    name: str
    setting: Setting
    adapter: AdapterFile | None = None  # None: the pictures are given
    identity: Mapping[str, Any] = field(default_factory=dict)  # plain data: base, image encoder, sampling, adapter

    def references(self, case: SuiteCase) -> list[tuple[Reference, Photo]]:
        """What the method is shown for the case: each subject with the picture in its place."""
        if self.setting is Setting.TEXT_TO_IMAGE:
            return []
        if self.setting is not Setting.WRONG_REFERENCE:
            return [(reference, reference.given) for reference in case.references]
        return [(reference, _wrong(reference)) for reference in case.references]

    def key(self, case: SuiteCase, photos: Photos) -> str:
        """32 hex digits; equal for images that are equal."""
        shown = [[reference.word, photos.identity(photo)] for reference, photo in self.references(case)]
        content = {
            **self.identity,
            "setting": self.setting.value,
            "prompt": case.prompt,
            "seed": case.seed,
            "subjects": shown,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _wrong(reference: Reference) -> Photo:
    if reference.wrong is None:
        raise UsageError(f"the subject '{reference.subject}' has no other subject as a wrong reference")
    return reference.wrong


def name_and_place(text: str) -> tuple[str, str]:
    """`NAME=PLACE`, or a PLACE, whose name is its last part without `.safetensors`."""
    name, sign, place = text.partition("=")
    if sign and "/" not in name:
        return name, place
    return text.rstrip("/").rsplit("/", 1)[-1].removesuffix(".safetensors"), text


def named_adapters(given: Sequence[str]) -> dict[str, str]:
    """`FILE` or `NAME=FILE` -> file by name; a file's own name is its stem. Raises UsageError for a name that is there twice."""
    found: dict[str, str] = {}
    for text in given:
        name, file = name_and_place(text)
        if name in found:
            raise UsageError(f"--adapter: two adapters are called '{name}' ({found[name]}, {file}): give NAME=FILE")
        if name in (ORACLE, TEXT_ALONE):
            raise UsageError(f"--adapter: '{name}' is the name of another row; give NAME={file}")
        found[name] = file
    return found


def make_methods(
    adapters: Sequence[AdapterFile], settings: Sequence[Setting], identity: Mapping[str, Any]
) -> list[Method]:
    """The rows that are drawn: text alone once, with the first adapter's sampler, then each adapter under each setting.

    Args:
        identity: base, sampling and whatever else decides the pixels beside the adapter.
    """
    methods = []
    if Setting.TEXT_TO_IMAGE in settings and adapters:
        first = adapters[0]
        methods.append(
            Method(
                name=TEXT_ALONE,
                setting=Setting.TEXT_TO_IMAGE,
                adapter=first,
                identity={**identity, "sampler": first.sampler},
            )
        )
    for adapter in adapters:
        decided = {**identity, "adapter": adapter.sha256}
        methods += [
            Method(name=adapter.name + ROWS[setting], setting=setting, adapter=adapter, identity=decided)
            for setting in ROWS
            if setting in settings
        ]
    return methods
