"""A check that no two rows of a user's tables have the same uid. `select` does it, as it reads the corpus as a whole.

Tables of `ingest` need no check: a uid is the hash of a key, and keys begin with the file's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.unit import Unit
from realcustom.store import Store

_UID = tables.INGESTED.field("uid")


def check_uids(units: Sequence[Unit], store: Store) -> None:
    """Raise UsageError, naming the two files, if a uid occurs twice.

    Reads one column; holds 16 bytes a row, and the uids of the files that are being read.
    """
    uris = [unit.files[0].uri for unit in units]
    with ThreadPoolExecutor(max_workers=16) as pool:
        marks = np.concatenate(list(pool.map(lambda uri: _marks(_uids(uri, store)), uris)))
    marks.sort()
    twice = marks[1:][marks[1:] == marks[:-1]]
    if not len(twice):
        return
    seen: dict[str, str] = {}
    for uri in uris:
        uids = _uids(uri, store)
        for index in np.flatnonzero(np.isin(_marks(uids), twice)).tolist():
            uid = uids[index]
            if uid in seen:  # else two uids with the same 64 bits
                raise UsageError(
                    f"two rows have the uid {uid}, one in {seen[uid]} and one in {uri}; every picture needs its own"
                )
            seen[uid] = uri


def _uids(uri: str, store: Store) -> list[str]:
    table = store.call(lambda place: tables.read_columns(place, ["uid"], (_UID,)), uri)
    tables.require_filled(table, ["uid"], uri)
    uids: list[str] = table["uid"].to_pylist()
    return uids


def _marks(uids: Sequence[str]) -> np.ndarray:
    """uint64 (n,): 64 bits of each uid."""
    digests = (hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in uids)
    return np.frombuffer(b"".join(digests), np.uint64)
