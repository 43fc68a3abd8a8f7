"""An S3 server on loopback that can go away and come back."""

from __future__ import annotations

import os
import threading
import urllib.parse

import httpx
from moto.server import ThreadedMotoServer


class ObjectStore:
    """A real S3 API at one address. While it is away connections are refused; its objects are kept."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()
        httpx.post(
            f"{self.url}/moto-api/reset"
        ).raise_for_status()  # of the objects of servers before it in this process
        self._returns: threading.Timer | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def away(self, seconds: float) -> None:
        """Go away now, and come back by itself after `seconds`."""
        self._server.stop()
        self._returns = threading.Timer(seconds, self._come_back)
        self._returns.start()

    def come_back(self) -> None:
        """Come back now, if it is away."""
        if self._returns is not None and self._returns.is_alive():
            self._returns.cancel()
            self._come_back()

    def wait(self) -> None:
        """Return when it is there again."""
        if self._returns is not None:
            self._returns.join()

    def close(self) -> None:
        """End the server, after it has come back if it was away."""
        self.wait()
        self._server.stop()

    def _come_back(self) -> None:
        self._server = ThreadedMotoServer(self.host, self.port, verbose=False)
        self._server.start()


def swift_variables() -> dict[str, str]:
    """Variables that name the OpenStack Swift at SWIFT_URL, with its S3 API; empty where none is named."""
    if "SWIFT_URL" not in os.environ:
        return {}
    keys = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
    return {"AWS_ENDPOINT_URL": os.environ["SWIFT_URL"], **keys, "AWS_DEFAULT_REGION": "us-east-1"}


def store_address() -> tuple[str, int]:
    """Host and port of the S3 server that the environment names."""
    url = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert url.hostname is not None and url.port is not None
    return url.hostname, url.port
