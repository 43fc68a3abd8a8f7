"""A proxy is asked for other machines alone."""

from __future__ import annotations

import pytest

from realcustom.proxies import is_loopback, proxy_of


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:8000/a", True),
        ("http://localhost:8000", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example", False),
        ("https://head", False),
    ],
)
def test_which_hosts_are_this_machine(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


def test_which_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy_of("http://head:8265") is None
    monkeypatch.setenv("http_proxy", "there:3128")
    monkeypatch.setenv("no_proxy", "near")
    assert proxy_of("http://head:8265") == "http://there:3128"
    assert proxy_of("https://head:8265") is None
    assert proxy_of("http://near:8265") is None
    assert proxy_of("http://127.0.0.1:8265") is None
