"""Which addresses a URL of an untrusted table may lead to, and requests that go to the address that was judged.

A name is looked up once and the connection opened to that very address: a name that is looked up again for the
connection could mean another one by then.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass, field
from typing import Any

import httpx

from realcustom.preprocessing.errors import DataError, DataFault, RowDropped

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, kw_only=True)
class UrlTarget:
    """A URL whose scheme and form are in order."""

    url: httpx.URL
    host: str

    @classmethod
    def parse(cls, url: str) -> UrlTarget:
        """Raises DataError for what is no URL, RowDropped for another scheme than http and https."""
        try:
            parsed = httpx.URL(url)
            host = parsed.host  # decodes an international name, and may find it to be none
        except (httpx.InvalidURL, ValueError) as error:
            raise DataError(DataFault.INVALID_URL, f"{error}: {url[:200]!r}") from error
        if parsed.scheme not in ("http", "https"):
            if not parsed.scheme:
                raise DataError(DataFault.INVALID_URL, f"no http:// or https:// before {url[:200]!r}")
            raise RowDropped("forbidden_scheme", f"{parsed.scheme}: is neither http nor https: {url[:200]!r}")
        if not host:
            raise DataError(DataFault.INVALID_URL, f"no host in {url[:200]!r}")
        return cls(url=parsed, host=host)


@dataclass(frozen=True, kw_only=True)
class PinnedRequest:
    """A URL by its address, with what the server needs to know of the name."""

    url: httpx.URL
    host_header: str
    extensions: dict[str, Any] = field(default_factory=dict)


async def resolve(target: UrlTarget, private_addresses: bool) -> PinnedRequest:
    """Look the host up and judge where it is.

    Raises:
        RowDropped: it is not on the public internet, and `private_addresses` is false.
        OSError: there is no such name.
    """
    loop = asyncio.get_running_loop()
    port = target.url.port or (443 if target.url.scheme == "https" else 80)
    try:
        found = await loop.getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long
        raise DataError(DataFault.INVALID_URL, f"'{target.host}' cannot be a host's name") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not private_addresses:
        inner = next((address for address in addresses if not is_public(address)), None)
        if inner is not None:
            message = f"'{target.host}' is {inner}, not a public address; ingest.private_addresses=true allows such"
            raise RowDropped("private_address", message)
    chosen = min(addresses, key=lambda address: address.version)  # IPv4 first: it is routed everywhere
    extensions = {"sni_hostname": target.host} if target.url.scheme == "https" else {}
    url = target.url.copy_with(host=str(chosen), username=None, password=None)
    return PinnedRequest(url=url, host_header=target.url.netloc.decode("ascii"), extensions=extensions)


def is_public(address: _Address) -> bool:
    """Whether an address is on the public internet and leads nowhere else: no wrapped IPv4, no group."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour or address.teredo
        if wrapped is not None or address in ipaddress.ip_network("64:ff9b::/96"):
            return False
    return address.is_global and not address.is_multicast
