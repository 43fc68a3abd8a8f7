"""Which requests go through a proxy that the environment names (HTTP_PROXY and the like)."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def is_loopback(url: str) -> bool:
    """Whether `url` is of this machine: a proxy would ask its own."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxy_of(url: str) -> str | None:
    """The URL of the proxy for `url`; None: it is asked directly."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy is None or is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
