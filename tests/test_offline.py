"""The guard of tests/offline: it lets loopback through and nothing else, here and in subprocesses (promise E2)."""

import socket
import subprocess
import sys

import pytest
import sitecustomize as offline

OUTSIDE = "203.0.113.7"  # TEST-NET-3 (RFC 5737): nobody lives there


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass


@pytest.mark.parametrize("host", [OUTSIDE, "example.invalid"])
def test_the_outside_is_refused(host: str) -> None:
    with pytest.raises(offline.OutsideConnection, match=host):
        socket.create_connection((host, 80), timeout=1)
    assert offline.attempts == [host]
    offline.attempts.clear()


def test_subprocesses_are_refused_too() -> None:
    program = f"import socket; socket.create_connection(('{OUTSIDE}', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "OutsideConnection" in done.stderr
