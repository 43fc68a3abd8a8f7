"""Which program this is, on which machine: for others to tell who it is, and whether it lives."""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from pathlib import Path
from typing import Any


def program() -> dict[str, Any]:
    """This process: `user`, `host`, `machine` as `identity`, `pid`, `started` as `start_of`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = str(os.getuid())
    return {
        "user": user,
        "host": socket.gethostname(),
        "machine": identity(),
        "pid": os.getpid(),
        "started": start_of(os.getpid()),
    }


def identity() -> str:
    """This machine since its start, and the processes' numbers of this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: nobody is of the same machine, and all wait for the lease's end
        return uuid.uuid4().hex


def start_of(pid: int) -> str:
    """When a process began, which its number alone does not say; empty for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in b"ZX" else fields[19].decode()
