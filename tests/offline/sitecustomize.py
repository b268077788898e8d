"""No test talks to the outside: every connection but to this machine itself is refused, loudly.

pytest imports this in tests/conftest.py; Python imports it by itself in every subprocess of a test, since this folder
is on their PYTHONPATH. What is raised is no OSError, so that nobody takes it for a network that happens to be down.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

attempts: list[str] = []


class OutsideConnection(RuntimeError):
    """A test, or what it tests, tried to reach another machine."""


def is_here(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(host: object) -> None:
    attempts.append(str(host))
    raise OutsideConnection(f"a connection to {host!r} was tried; tests stay on this machine")


def guard(name: str) -> None:
    """Let `socket.socket.<name>` through for addresses on this machine only; the address is its last argument."""
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) and not is_here(address[0]):
            refuse(address[0])
        return original(self, *arguments)

    setattr(socket.socket, name, guarded)


def guarded_getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
    if not is_here(host):
        refuse(host)
    return getaddrinfo(host, *arguments, **named)


getaddrinfo = socket.getaddrinfo
socket.getaddrinfo = guarded_getaddrinfo
for method in ("connect", "connect_ex", "sendto"):
    guard(method)
