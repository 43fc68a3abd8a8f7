"""What `realcustom serve` says. That it answers HTTP until Ctrl-C is seen in `tests/test_docs.py`."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.serving import announcement
from tests.support.tiny import TinyModels


def test_a_taken_port_is_one_line(ray_cluster: str, tiny_models: TinyModels) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = ["serve", *tiny_models.options, "--set", f"serve.port={taken.getsockname()[1]}"]
        done = subprocess.run(
            [Path(sys.executable).with_name("realcustom"), *arguments], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    assert re.search(
        r"^error: cannot listen on 127.0.0.1 port \d+ .*; choose another port: --set serve.port=N$",
        done.stderr,
        re.MULTILINE,
    )


def test_the_announcement_names_the_key_that_a_request_needs() -> None:
    text = announcement("http://127.0.0.1:8000", ServeSettings(api_key_variable="MY_KEY"))
    assert "ready at http://127.0.0.1:8000" in text and '-H "Authorization: Bearer $MY_KEY"' in text
