"""What `realcustom serve` says. That it answers HTTP until Ctrl-C is seen in `tests/test_docs.py`."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator

import pytest

from realcustom.inference.settings import ServeSettings
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.serving import announcement
from tests.support.tiny import TinyModels


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What a command that runs in this process sets for itself is taken back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_taken_port_is_one_line(
    ray_cluster: str, tiny_models: TinyModels, own_signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(["serve", *tiny_models.options, "--set", f"serve.port={taken.getsockname()[1]}"]) == 2
    assert re.search(
        r"^error: cannot listen on 127.0.0.1 port \d+ .*; choose another port: --set serve.port=N$",
        capfd.readouterr().err,
        re.MULTILINE,
    )


def test_the_announcement_names_the_key_that_a_request_needs() -> None:
    text = announcement("http://127.0.0.1:8000", ServeSettings(api_key_variable="MY_KEY"))
    assert "ready at http://127.0.0.1:8000" in text and '-H "Authorization: Bearer $MY_KEY"' in text
