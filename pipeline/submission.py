"""A command as a job of a cluster: what it takes along, what it asks for, and how it is started there."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import logging
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.pipeline import far_side
from realcustom.pipeline.jobs_api import JobsApi, Unreachable
from realcustom.pipeline.packing import LARGE_MB, LIMIT, MB, Package, content_name
from realcustom.store import Store, check_writable

logger = logging.getLogger(__name__)

# Compared by their first two numbers, those that are installed here.
PACKAGES = ("ray", "torch", "diffusers", "transformers", "pyarrow", "numpy", "safetensors", "tokenizers")
STOP_SECONDS = 120  # from a job's SIGTERM to its SIGKILL; Ray's own 3 are too few for a checkpoint
AGENT_TRIES, NO_AGENT = 6, "No available agent"
_OWN_OUTPUT = ("generate", "quickstart")  # verbs that without --output write below the folder they run in
_WRITTEN = ("--output", "--html")  # options that name what is written
_LOST = (
    "a job works in a folder of Ray's, which goes with the cluster, and so would the result; "
    "give an s3:// address, or an absolute path that every node reaches"
)
_SECRET = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PYTHON = "REALCUSTOM_JOB_PYTHON"  # variable: the interpreter
_CHECK = "REALCUSTOM_JOB_CHECK"  # variable: the text of far_side.py
# Ray runs a job in a shell with any PATH. Its own interpreter is in the command line of the raylet, which started the process
# that started this shell.
_START = r"""raylet=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$PPID/status")
rays=$(tr '\0' '\n' < "/proc/$raylet/cmdline" | sed -n 's/^--python_worker_command=\([^ ]*\).*/\1/p')
exec "${REALCUSTOM_JOB_PYTHON:-${rays:-python3}}" .realcustom-job/check.py "$@"
"""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A job to submit."""

    arguments: Sequence[str]  # of `realcustom`
    name: str
    package: Package | None = None  # None: the cluster has our package
    storage: str | None = None  # URI of a folder for packages over the limit
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: float | None = None  # of the node that the job's own process is on
    gpus: float | None = None
    memory_gib: float | None = None
    retries: int = 0
    python: str | None = None  # interpreter there; None: Ray's own, or the image's
    image: str | None = None  # container image in which Ray runs the job's processes, with our package
    secrets: Mapping[str, str] = field(default_factory=dict)  # variable -> where each node has its value

    def __post_init__(self) -> None:
        if not self.arguments:
            raise UsageError("what is to run? Give a verb after `--`, as: submit -- preprocess score --input ...")
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"--name: {self.name!r} has other characters than letters, digits, '.', '_' and '-'")
        for name, place in self.secrets.items():
            if not _SECRET.fullmatch(place):
                raise UsageError(
                    f"--secret: {name} is said by where each node has it, env:VARIABLE or file:/PATH; a value itself would be "
                    "shown to all who see the cluster's jobs"
                )
        if self.storage is not None and not self.storage.startswith("s3://"):
            raise UsageError(
                f"--storage: each node reads the package from there: give s3://BUCKET/FOLDER, not {self.storage}"
            )
        if self.storage is not None and self.package is None:
            raise UsageError(
                "--storage is for a package, and with --image or --no-package the job takes none: leave it out"
            )
        if self.image is not None and self.secrets:
            raise UsageError(
                "--secret: Ray sets no secrets in the workers of an --image; have the image's nodes set them, or leave one out"
            )

    @property
    def needed(self) -> dict[str, float]:
        """What the job asks of one node, by Ray's names."""
        memory = None if self.memory_gib is None else self.memory_gib * 2**30
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": memory}
        return {name: amount for name, amount in asked.items() if amount}

    def entrypoint(self) -> str:
        """The shell's command line."""
        if self.image is None:
            return shlex.join(["exec", "sh", ".realcustom-job/start", *self.arguments])
        return f'exec {shlex.quote(self.python or "python")} -c "${_CHECK}" {shlex.join(self.arguments)}'

    def to_ray(self, working_dir: str) -> dict[str, Any]:
        """The body of Ray's request."""
        variables = {
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            "TQDM_DISABLE": "1",  # of libraries, in workers too: each state of a bar would be a line of the job's output
            far_side.WANTED: json.dumps(
                {"python": "{}.{}".format(*sys.version_info), "packages": _versions()}, sort_keys=True
            ),
            **({far_side.RETRIES: str(self.retries)} if self.retries else {}),
            **({PYTHON: self.python} if self.python is not None else {}),
            **({far_side.SECRETS: json.dumps(dict(self.secrets), sort_keys=True)} if self.secrets else {}),
            **({_CHECK: Path(far_side.__file__).read_text()} if self.image is not None else {}),
            **self.environment,
        }
        # Ray takes no working directory along into an image
        place = {"working_dir": working_dir} if self.image is None else {"image_uri": self.image}
        hook = {"worker_process_setup_hook": f"{far_side.__name__}.set_secrets"} if self.secrets else {}
        request: dict[str, Any] = {
            "submission_id": self.name,
            "entrypoint": self.entrypoint(),
            "runtime_env": {**place, **hook, "env_vars": variables},
            "metadata": {
                "verb": shlex.join(self.arguments),
                **{f"label:{name}": value for name, value in self.labels.items()},
            },
        }
        names = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
        for name, amount in self.needed.items():
            request[names[name]] = int(amount) if name == "memory" else amount
        return request


def submit(request: JobRequest, api: JobsApi, *, wait_for_room: bool) -> None:
    """Check, send the package, and hand the job to the cluster, which starts it when it has room.

    Args:
        wait_for_room: hand it over too where no node has what the job asks for, and the cluster is not known to grow.
    Raises:
        UsageError: within seconds: another Ray, no room, a package over the limit, a name that is taken.
    """
    _check_ray(api)
    _check_room(request.needed, api, wait_for_room)
    working_dir = "" if request.image is not None else _send(request, api)
    for attempt in range(1, AGENT_TRIES + 1):
        try:
            api.submit(request.to_ray(working_dir))
            return
        except Unreachable:
            if _has_come(request, api):
                return
            raise
        except UsageError as error:
            if "already" in str(error):
                raise UsageError(f"--name: the cluster has a job {request.name}; give another name") from error
            if NO_AGENT not in str(error) or attempt == AGENT_TRIES:
                raise
            time.sleep(1.0)  # of a cluster that is starting


def _has_come(request: JobRequest, api: JobsApi) -> bool:
    """Whether the cluster has the job, though its answer was lost."""
    with contextlib.suppress(UsageError):
        return api.get(request.name).entrypoint == shlex.join(request.arguments)
    return False


def describe(request: JobRequest, api_url: str) -> str:
    """The job as YAML, as it would be submitted."""
    package = request.package
    taken = (
        f"nothing: {'the cluster' if request.image is None else 'the image'} has the code"
        if package is None
        else {"root": str(package.root), "files": len(package.files), "megabytes": round(package.size / MB, 1)}
    )
    body = request.to_ray("<the package>")
    return yaml.safe_dump({"address": api_url, "package": taken, **body}, sort_keys=False, allow_unicode=True)


def check_output(arguments: Sequence[str]) -> None:
    """Raise UsageError for an output that would go with the cluster: a job works in a folder of Ray's on some node."""
    given = False
    for option, value in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, said = option.partition("=")
        given = given or name == "--output"
        place = said if equals else value
        if name in _WRITTEN and place and not storage.is_remote(place) and not os.path.isabs(place):
            raise UsageError(f"{name} {place}: {_LOST}")
    if not given and arguments and arguments[0] in _OWN_OUTPUT:
        raise UsageError(f"{arguments[0]} has no --output: {_LOST}")


def as_estimate(arguments: Sequence[str], units: int) -> list[str]:
    """The command that tries the first `units` units of a verb and says what all of them would take; nothing is kept."""
    verb = arguments[0] if arguments else ""
    if verb not in ("preprocess", "train"):
        raise UsageError(f"--estimate: of preprocess and train a part can be tried, not of {verb or 'nothing'}")
    if "--dry-run" in arguments:
        raise UsageError("--estimate makes the verb's --dry-run: give one of the two")
    if verb == "train":
        if units > 1:
            logger.warning("--estimate: of train a few steps are tried, whatever the number; %d has no effect", units)
        return [*arguments, "--dry-run"]
    return [*arguments, "--dry-run", str(units)]


def make_name(arguments: Sequence[str]) -> str:
    """A name for a job, as `preprocess-score-3f2a1c`."""
    verb = [word for word in arguments[:2] if re.fullmatch(r"[a-z]+", word)]
    return "-".join([*verb, uuid.uuid4().hex[:6]])


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """`K=V` texts as a mapping. Raises UsageError for another form."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
            raise UsageError(f"{option}: {text!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def _first_programs() -> dict[str, bytes]:
    """What runs before the command, as files of the package."""
    files = {"start": _START.encode(), "check.py": Path(far_side.__file__).read_bytes()}
    return {f".realcustom-job/{name}": data for name, data in files.items()}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _check_ray(api: JobsApi) -> None:
    there = api.version()
    here = _versions().get("ray")
    if here is not None and there.split(".")[:2] != here.split(".")[:2]:
        raise UsageError(
            f"the cluster at {api.url} runs Ray {there} and this machine has {here}: install the cluster's version here, or "
            "submit from an environment that has it"
        )


def _check_room(needed: Mapping[str, float], api: JobsApi, wait: bool) -> None:
    """Raise UsageError where no node has what the job asks for and none is to be expected; else say that it will wait."""
    nodes = api.nodes() if needed else []
    if not needed or any(all(node.total.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
        return
    message = f"the job asks one node for {_words(needed)}, and the {len(nodes)} nodes of {api.url} have " + (
        "; ".join(sorted({_words({name: node.total.get(name, 0) for name in needed}) for node in nodes})) or "nothing"
    )
    if not wait and not any(node.launched for node in nodes):
        raise UsageError(f"{message}: ask for less, or wait for another node with --wait-for-room")
    logger.info("%s; it waits for a node that has it", message)


def _words(amounts: Mapping[str, float]) -> str:
    return ", ".join(
        f"{amount / 2**30:.1f} GiB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in amounts.items()
    )


def _send(request: JobRequest, api: JobsApi) -> str:
    """Give the cluster the package; returns the URI that Ray takes the working directory from."""
    package = request.package or Package(root=Path(), files={}, sizes={})
    if request.storage is not None:
        check_writable(request.storage)
    if package.size > LARGE_MB * MB:
        logger.warning("the job takes %s", package)
    if package.untracked:
        logger.info(
            "%d files that git neither tracks nor ignores stay behind (git add takes them along)", package.untracked
        )
    data = package.zipped(_first_programs(), LIMIT if request.storage is None else None)
    name = f"_ray_pkg_{content_name(data)}.zip"
    if len(data) < LIMIT:
        if not api.has_package(name):
            api.send_package(name, data)
        return f"gcs://{name}"
    assert request.storage is not None  # else it is not larger
    uri = storage.join(request.storage, name)
    store = Store()
    if not store.exists(uri):
        store.write(uri, data)
    return uri
