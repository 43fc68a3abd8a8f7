"""Writes that happen only if nothing is there, or nothing has changed; and how old a file is by its store's own time."""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import functools
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from realcustom import storage
from realcustom.store import Store, refusals

logger = logging.getLogger(__name__)

_NOT_MET = (409, 412)  # a conflict with another conditional write, and a condition that does not hold
_NOT_KNOWN = ("NotImplemented", "501", "InvalidArgument", "MethodNotAllowed")


def put_if_absent(uri: str, data: bytes, store: Store) -> bool:
    """Write `data` where nothing is; whether it was written."""
    if storage.is_remote(uri):
        return store.call(lambda place: _put_object(place, data, {"IfNoneMatch": "*"}), uri, "write")
    path = storage.open_filesystem(uri)[1]
    return store.call(lambda _: _link(path, data), uri, "write")


def put_over(uri: str, data: bytes, over: bytes, store: Store) -> bool:
    """Write `data` in the place of `over`; whether it was written: not where something else is, or nothing."""
    if storage.is_remote(uri):
        return store.call(lambda place: _replace_object(place, data, over), uri, "write")
    path = storage.open_filesystem(uri)[1]
    return store.call(lambda _: _replace(path, data, over), uri, "write")


def can_condition(probe: str, store: Store) -> bool:
    """Whether the store heeds both conditions; tried with a small object at `probe`, which is removed."""
    if not storage.is_remote(probe):
        return True
    bucket, _ = storage.split_uri(probe)
    return _heeds(bucket, os.environ.get("AWS_ENDPOINT_URL", ""), _Probe(uri=probe, store=store))


@dataclass(frozen=True, kw_only=True)
class _Probe:
    """Where it is tried; every place of a bucket gives the same answer."""

    uri: str = field(compare=False)
    store: Store = field(compare=False)


@functools.cache
def _heeds(bucket: str, endpoint: str, probe: _Probe) -> bool:
    heeds = _try(probe)
    if heeds:
        logger.debug("s3://%s writes only where nothing is, or nothing has changed: leases are sure", bucket)
    else:
        logger.info(
            "s3://%s has no conditional writes: leases are written, waited for and read back, which a write that is late by "
            "more than the wait can defeat",
            bucket,
        )
    return heeds


def _try(probe: _Probe) -> bool:
    probe.store.write(probe.uri, b"1")
    try:
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": f'"{"0" * 32}"'}):
            write = functools.partial(_put_object, data=b"2", condition=condition)
            if probe.store.call(write, probe.uri, "write"):
                return False
    except NotImplementedError:
        return False
    finally:
        remove(probe.uri, probe.store)
    return True


def remove(uri: str, store: Store) -> None:
    """Remove a small file in one request, and leave no marker of its folder."""
    if storage.is_remote(uri):
        store.call(_delete_object, uri, "delete")
    else:
        store.delete(uri)


def age_of(uri: str, store: Store) -> float | None:
    """Seconds since a file was written, by the clock of its store; None where there is none."""
    if storage.is_remote(uri):
        return store.call(_age_of_object, uri)
    path = Path(storage.open_filesystem(uri)[1])
    try:
        with refusals("read", uri), tempfile.TemporaryFile(dir=path.parent) as now:
            return max(0.0, os.fstat(now.fileno()).st_mtime - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _put_object(uri: str, data: bytes, condition: Mapping[str, str]) -> bool:
    bucket, key = storage.split_uri(uri)
    client = storage.s3_client()
    try:
        client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
    except client.exceptions.ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status in _NOT_MET or (code in ("NoSuchKey", "404") and "IfMatch" in condition):
            return False
        if code in _NOT_KNOWN:
            raise NotImplementedError(code) from error
        raise
    return True


def _replace_object(uri: str, data: bytes, over: bytes) -> bool:
    bucket, key = storage.split_uri(uri)
    client = storage.s3_client()
    try:
        there = client.get_object(Bucket=bucket, Key=key)
    except client.exceptions.NoSuchKey:
        return False
    return bool(there["Body"].read() == over) and _put_object(uri, data, {"IfMatch": there["ETag"]})


def _delete_object(uri: str) -> None:
    bucket, key = storage.split_uri(uri)
    storage.s3_client().delete_object(Bucket=bucket, Key=key)


def _age_of_object(uri: str) -> float | None:
    bucket, key = storage.split_uri(uri)
    client = storage.s3_client()
    try:
        answer = client.head_object(Bucket=bucket, Key=key)
    except client.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
    now = email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return max(0.0, float((now - answer["LastModified"]).total_seconds()))


def _link(path: str, data: bytes) -> bool:
    """A file system makes a name only once: write under another one, and link."""
    folder = os.path.dirname(path)
    while True:
        os.makedirs(folder, exist_ok=True)
        try:
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-")
        except FileNotFoundError:  # the folder was removed in between, by a holder that has ended
            continue
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.link(temporary, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            continue
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return True


def _replace(path: str, data: bytes, over: bytes) -> bool:
    """Programs that replace a file have its lock one after the other; who then finds another file in its place does nothing."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)) or file.read() != over:
                return False
            storage.write_bytes(path, data)
    except FileNotFoundError:
        return False
    return True
