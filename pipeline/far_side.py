"""The first program of a submitted job: it checks the interpreter and its packages, and then runs the command.

It is sent along as a file of its own, or in a variable where the job runs in an image, and run by whatever Python is there:
standard library only, and syntax that older versions read. Its arguments are those of `realcustom`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

MISTAKE = 2
FINAL = (0, MISTAKE, 3, 130, 143)  # exit statuses that another try would not change, or that were asked for
PAUSE_SECONDS = 5.0
# variables
RETRIES = "REALCUSTOM_JOB_RETRIES"  # how often a failed command is begun again
WANTED = "REALCUSTOM_JOB_WANTED"  # versions of the submitting side: `python` as "3.11", `packages` as {name: version}
SECRETS = "REALCUSTOM_JOB_SECRETS"  # {variable: where its value is}, `env:NAME` or `file:PATH`, read on each node


def problems(wanted: dict[str, Any]) -> list[str]:
    """What this interpreter lacks, one text each.

    Args:
        wanted: `python` as "3.11", `packages` as {name: version}.
    """
    found = []
    python = "{}.{}".format(*sys.version_info)
    if python != wanted["python"]:
        found.append("Python is {} there and {} here".format(python, wanted["python"]))
    for name, version in sorted(wanted["packages"].items()):
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
            continue
        if there.split("+")[0].split(".")[:2] != version.split("+")[0].split(".")[:2]:
            found.append(f"{name} is {there} there and {version} here")
    if not found and importlib.util.find_spec("realcustom") is None:
        found.append("realcustom is neither installed nor in the package")
    return found


def set_secrets() -> None:
    """Set the variables whose values are on this node; for the job's own process, and as Ray's hook in each worker.

    Raises LookupError, naming the variable and the place, where there is no such value.
    """
    for name, place in sorted(json.loads(os.environ.get(SECRETS, "{}")).items()):
        kind, _, where = place.partition(":")
        if kind == "env":
            value = os.environ.get(where)
        else:
            try:
                with open(where) as file:
                    value = file.read().rstrip("\n")
            except OSError:
                value = None
        if not value:
            what = "variable" if kind == "env" else "file that can be read"
            raise LookupError(f"the secret {name}: this node has no {what} {where}")
        os.environ[name] = value


def run(arguments: list[str], retries: int) -> int:
    """Run the command, again after a status that another try may change; returns the last exit status."""
    command = [sys.executable, "-m", "realcustom"] + arguments
    if not retries:
        os.execv(sys.executable, command)
    stopped = []  # the signals that ask to end
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ray sends it to the command too, which at a second one would end at once
        signal.signal(number, lambda number, frame: stopped.append(number))
    attempt = 0
    while True:
        attempt += 1
        process = subprocess.Popen(command)
        if stopped:  # before Ray could know the command
            process.terminate()
        status = process.wait()
        status = status if status >= 0 else 128 - status
        if status in FINAL or stopped or attempt > retries:
            return status
        print(f"exit status {status}; trying again ({attempt} of {retries})", flush=True)
        again = time.monotonic() + PAUSE_SECONDS
        while time.monotonic() < again:
            if stopped:
                return 128 + stopped[0]
            time.sleep(0.1)


def main() -> None:
    """Check, run, and exit with the command's status."""
    sys.path.insert(0, os.getcwd())
    found = problems(json.loads(os.environ[WANTED]))
    if found:
        _refuse(
            "the cluster's interpreter {} does not fit: {}; install what is missing there, or name another "
            "interpreter with --python, or another image".format(sys.executable, "; ".join(found))
        )
    try:
        set_secrets()
    except LookupError as error:
        _refuse(str(error.args[0]) + "; a secret is a variable or a file of every node")
    sys.exit(run(sys.argv[1:], int(os.environ.get(RETRIES, "0"))))


def _refuse(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(MISTAKE)


if __name__ == "__main__":
    main()
