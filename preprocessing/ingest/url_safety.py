"""Which addresses a URL of an untrusted table may use, and requests to exactly the address that was checked.

A host name is looked up once and the connection opened to that address: a second look-up could give another address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass

import httpx

from realcustom.preprocessing.errors import DataError, DataFault, RowDropped

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# All that IANA has given out of IPv6 for the public internet. Beside it lie the addresses that translators (NAT64, SIIT) make of
# IPv4 ones, and networks' own.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True, kw_only=True)
class UrlTarget:
    """A URL with a valid scheme and form."""

    url: httpx.URL
    host: str

    @property
    def site(self) -> str:
        """Host and port."""
        return f"{self.host}:{_port(self.url)}"

    @classmethod
    def parse(cls, url: str) -> UrlTarget:
        """Raises DataError for an invalid URL, RowDropped for a scheme other than http and https."""
        try:
            parsed = httpx.URL(url)
            host = parsed.host  # decodes an international name, which may be invalid
        except (httpx.InvalidURL, ValueError) as error:
            raise DataError(DataFault.INVALID_URL, f"{error}: {url[:200]!r}") from error
        if parsed.scheme not in ("http", "https"):
            if not parsed.scheme:
                raise DataError(DataFault.INVALID_URL, f"no http:// or https:// before {url[:200]!r}")
            raise RowDropped("forbidden_scheme", f"{parsed.scheme}: is neither http nor https: {url[:200]!r}")
        if not host:
            raise DataError(DataFault.INVALID_URL, f"no host in {url[:200]!r}")
        if not 0 < _port(parsed) < 2**16:
            raise DataError(DataFault.INVALID_URL, f"{_port(parsed)} is no port: {url[:200]!r}")
        return cls(url=parsed, host=host)


@dataclass(frozen=True, kw_only=True)
class PinnedRequest:
    """A URL by its address, with the host name that the server needs."""

    url: httpx.URL
    host_header: str
    server_hostname: str | None  # that a certificate must be for; None: not over https


async def resolve(target: UrlTarget, private_addresses: bool) -> PinnedRequest:
    """Look the host up and check its address.

    Raises:
        RowDropped: it is not on the public internet, and `private_addresses` is false.
        OSError: there is no such name.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, _port(target.url), type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long
        raise DataError(DataFault.INVALID_URL, f"'{target.host}' cannot be a host's name") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not private_addresses:
        inner = next((address for address in addresses if not is_public(address)), None)
        if inner is not None:
            message = f"'{target.host}' is {inner}, not a public address; ingest.private_addresses=true allows such"
            raise RowDropped("private_address", message)
    chosen = min(addresses, key=lambda address: address.version)  # IPv4 first: every network routes it
    return PinnedRequest(
        url=target.url.copy_with(host=str(chosen), username=None, password=None),
        host_header=target.url.netloc.decode("ascii"),
        server_hostname=target.url.raw_host.decode("ascii") if target.url.scheme == "https" else None,
    )


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def is_public(address: _Address) -> bool:
    """Whether an address is on the public internet: no embedded IPv4 address, no multicast group."""
    if isinstance(address, ipaddress.IPv6Address):
        holds_ipv4 = address.sixtofour is not None or address.teredo is not None
        if address not in _GLOBAL_UNICAST or holds_ipv4:
            return False
    return address.is_global and not address.is_multicast
