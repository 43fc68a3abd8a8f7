"""The exit status of a command, and the line that says why: the one place where the command line catches."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable

import typer

from realcustom.errors import UsageError
from realcustom.pipeline.cli import interrupt
from realcustom.pipeline.configure import setting_of
from realcustom.preprocessing.errors import NothingKept
from realcustom.training.stopping import Stopped

DEBUG_VARIABLE = "REALCUSTOM_DEBUG"  # if set, mistakes show their trace too
# packages of the extras
OPTIONAL = ("ray", "boto3", "botocore", "pycocotools", "httpx", "aiohttp", "jinja2", "fastapi", "pydantic")
MISTAKE = 2
NOTHING_KEPT = 3
SIGNALLED = 128  # and the signal's number: exit status of a program that a signal has ended


def status_of(act: Callable[[], int | None]) -> int:
    """The exit status of what `act` does: what it returns, or that of its error. What is not a user's mistake is raised."""
    try:
        status = act()
    except (KeyboardInterrupt, typer.Abort):
        status = interrupt.STATUS
    except typer.TyperException as error:  # an option or verb that does not exist, or a missing value
        return _refuse(_as_setting(error) or error.format_message(), error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        return _refuse(f"this needs {error.name}, which is not installed: pip install 'PATH_OF_THE_CLONE[all]'", error)
    except Stopped as stopped:
        command = shlex.join(["realcustom", *sys.argv[1:]])
        sys.stderr.write(f"{stopped}; the same command goes on: {command}\n")
        return SIGNALLED + stopped.number
    except NothingKept as error:
        return _refuse(str(error), error, NOTHING_KEPT)
    except UsageError as error:
        return _refuse(str(error), error)
    except FileNotFoundError as error:
        if error.filename is not None or _has_folder():
            raise
        return _refuse(
            "the folder that this command works in was removed (the system says so without a name): start it in one that "
            "stays; what is done is kept",
            error,
        )
    if status == interrupt.STATUS:  # typer turns an interrupt into this status, without a message
        sys.stderr.write("interrupted\n")
    return int(status or 0)


def _as_setting(error: typer.TyperException) -> str:
    """What is said of an option that a verb has not, where it is a setting: not the options of similar names. Else nothing."""
    option, context = (getattr(error, name, None) for name in ("option_name", "ctx"))
    if option is None or context is None:
        return ""
    _, *verb = context.command_path.split()
    setting = setting_of(option, verb[0]) if verb else None
    return "" if setting is None else f"No such option: {option}; it is a setting: --set {setting}=VALUE"


def _has_folder() -> bool:
    """Whether the folder that this process works in is there: without it every relative path ends in an error without a name."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _refuse(message: str, error: Exception, status: int = MISTAKE) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return status
