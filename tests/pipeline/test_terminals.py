"""Commands in a narrow terminal, with NO_COLOR, without a terminal, and with closed streams."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
PHOTO = str(ROOT / "tests" / "data" / "photos" / "duck_toy.jpg")
REALCUSTOM = (sys.executable, "-m", "realcustom")
GENERATE = ("generate", "--prompt", "a star on grass", "--word", "star", "--image", PHOTO)


def in_terminal(columns: int, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit status of a command in a terminal of that width, and what it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment = {**own, "TERM": "xterm-256color", **variables}
    process = subprocess.Popen([*REALCUSTOM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: nobody has the terminal open any more
            break
        if not part:
            break
        said += part
    os.close(ours)
    return process.wait(60), said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}], ids=["colours allowed", "NO_COLOR"])
def test_a_narrow_terminal_shows_help_and_mistakes_without_colours(variables: dict[str, str]) -> None:
    status, said = in_terminal(40, "generate", "--help", **variables)
    assert status == 0 and "--word" in said and "\x1b" not in said
    text = said.partition("For example:")[0].splitlines()  # commands are not broken into lines
    assert max(map(len, text)) <= 50  # the least width that help is set for
    status, said = in_terminal(40, *GENERATE, "--width", "33", "--output", "/dev/null/x", **variables)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1 and "\x1b" not in said


def test_closed_streams_change_neither_status_nor_files(tmp_path: Path) -> None:
    """The first files that a command opens must not take the numbers of the streams, and get their lines."""

    def started(*arguments: str) -> int:
        full = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *REALCUSTOM, *arguments]
        return subprocess.run(full, check=False, capture_output=True, timeout=120).returncode

    photos = str(ROOT / "tests" / "data" / "photos")
    assert started("preprocess", "ingest", "--local", "--input", photos, "--output", str(tmp_path)) == 0
    (table,) = tmp_path.glob("ingest@*/*.parquet")
    assert pq.read_metadata(table).num_rows == 3
    assert started("inspect", "/nowhere") == 2
