"""Subjects that were sent once: encoded, kept in the host's memory within a number of bytes, named later by their id."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from realcustom import config
from realcustom.inference.errors import UnknownSubject
from realcustom.inference.problems import first_problem
from realcustom.inference.responses import SubjectResponse
from realcustom.inference.schema import read_json

if TYPE_CHECKING:
    from realcustom.encoded import EncodedSubject


class NewSubject(BaseModel):
    """The body of `POST /v1/subjects`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image: str = Field(description="base64 of a PNG, JPEG or WebP, `data:` prefix accepted; URLs are not")
    mask: str | None = Field(None, description="base64 of a picture of `image`'s size, white where the subject is")


def parse_new_subject(body: bytes) -> NewSubject:
    """The checked body. Raises RequestError naming the field and the way out."""
    try:
        return NewSubject.model_validate(read_json(body))
    except ValidationError as error:
        raise first_problem(error, NewSubject) from error


def subject_id(subject: EncodedSubject) -> str:
    """A hash of the encoder's input, the encoder and how the picture was prepared."""
    digest = hashlib.sha256(subject.key)
    digest.update(subject.encoder.encode())
    digest.update(json.dumps(config.to_dict(subject.settings), sort_keys=True).encode())
    return f"subject-{digest.hexdigest()[:32]}"


class SubjectStore:
    """Encoded subjects by id; those not used for longest go first. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._subjects: OrderedDict[str, EncodedSubject] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, subject: EncodedSubject) -> SubjectResponse:
        """Keep it; others go if there is no room. One that is larger than all room stays until the next.

        It is kept in the host's memory; of those that are drawn a pipeline has the tokens on the device (`realcustom/encoded.py`).
        """
        name, subject = subject_id(subject), replace(subject, features=subject.features.cpu())
        with self._lock:
            self._subjects[name] = subject
            self._subjects.move_to_end(name)
            while len(self._subjects) > 1 and self._held() > self.max_bytes:
                self._subjects.popitem(last=False)
        return _described(name, subject)

    def get(self, name: str, param: str | None) -> EncodedSubject:
        """The subject of this id. Raises UnknownSubject."""
        with self._lock:
            subject = self._subjects.get(name)
            if subject is None:
                raise UnknownSubject(
                    f"{param or 'id'}: this server holds no such subject; send its picture again", param
                )
            self._subjects.move_to_end(name)
            return subject

    def describe(self, name: str) -> SubjectResponse:
        """As `add` answered. Raises UnknownSubject."""
        return _described(name, self.get(name, None))

    def ids(self) -> list[str]:
        """Those that are held."""
        with self._lock:
            return list(self._subjects)

    @property
    def held_bytes(self) -> int:
        """Bytes of all of them."""
        with self._lock:
            return self._held()

    def _held(self) -> int:
        return sum(subject.features.nbytes for subject in self._subjects.values())


def _described(name: str, subject: EncodedSubject) -> SubjectResponse:
    return SubjectResponse(id=name, encoder=subject.encoder, bytes=subject.features.nbytes)
