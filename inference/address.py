"""A check that an address is free: it fails at once, while Serve would try for half a minute and end with a trace."""

from __future__ import annotations

import socket

from realcustom.errors import UsageError


def check_port(host: str, port: int) -> None:
    """Raise UsageError if `port` of `host` is taken or `host` is not an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"cannot listen on {host} port {port} ({error.strerror}); choose another port: --set serve.port=N"
            raise UsageError(message) from error
