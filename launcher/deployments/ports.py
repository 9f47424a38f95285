"""Ports of this machine: the first that is tried, whether one is free, and who listens on one."""

from __future__ import annotations

import errno
import os
import socket

from engines.base import ConfigError, ResourceError
from launcher.deployments import holders

LAST = 65535
_FIRST = 8001  #: 8000 is the gateway's, which may come last


def first() -> int:
    """Return the number from which ports are tried. Raises `ConfigError`.

    Users who share a machine do not see each other's ledgers: different numbers keep them apart.
    """
    given = os.environ.get("RMLAUNCH_FIRST_PORT", "")
    if not given:
        return _FIRST
    if not given.isdecimal() or not 0 < int(given) <= LAST:
        raise ConfigError(f"RMLAUNCH_FIRST_PORT={given!r} is no port; give a number from 1 to {LAST}")
    return int(given)


def is_free(host: str, port: int) -> bool:
    """Return whether a server could listen on `port` of `host` now. Raises `ResourceError` where nobody ever could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do; otherwise the last connections of a stopped server would block its port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return False
            raise ResourceError(f"host={host!r} port={port}: {exc.strerror or exc}") from exc
    return True


def listener(port: int) -> str:
    """Say who listens on `port`, as far as this user may see."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return holders.process(connection.pid)
    except psutil.Error:
        pass
    return "a process that this user may not see"
