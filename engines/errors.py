"""Every failure that a user can meet, as one tree of exceptions."""

from __future__ import annotations

from typing import ClassVar


class RmLaunchError(Exception):
    """Root of every failure that a user can cause or meet; it prints as one message, never as a traceback.

    RmLaunchError
    ├── RequestError         the request is wrong; exit code 2
    │   ├── ConfigError      a key, an option or a value
    │   ├── PlanError        the combination asks for something that the engine cannot do
    │   └── ResourceError    a device, port or name that this machine does not have free
    ├── PrepareError         an environment, a download or a build failed; exit code 1
    ├── DeploymentError      the engine's program failed; exit code 1
    │   ├── ExitedBeforeReady
    │   ├── ReadyTimeout
    │   └── StoppedBeforeReady    as asked; exit code 130, the shell's for a Ctrl-C
    └── InferenceError       a running server refused or failed a request, in the server's own words; exit code 1
    """

    exit_code: ClassVar[int] = 1


class RequestError(RmLaunchError):
    """The request is wrong, and nothing was started."""

    exit_code = 2


class ConfigError(RequestError):
    """A key, an option or a value in the config is wrong."""


class PlanError(RequestError):
    """The spec asks for something that this engine cannot do; the message names the key to change."""


class ResourceError(RequestError):
    """A device, a port or a name that is not there or not free."""


class PrepareError(RmLaunchError):
    """An environment, a download or a build step failed."""


class DeploymentError(RmLaunchError):
    """The engine's program could not be kept serving."""


class ExitedBeforeReady(DeploymentError):
    """The engine's program ended before it served its first request."""


class ReadyTimeout(DeploymentError):
    """The engine's program ran but did not serve a request in time."""


class StoppedBeforeReady(DeploymentError):
    """Somebody asked the program to stop before it had done what it was started for."""

    exit_code = 130


class InferenceError(RmLaunchError):
    """A server refused or failed a request; `status` is its HTTP or gRPC code where there is one."""

    def __init__(self, message: str, status: int | str | None = None) -> None:
        super().__init__(message)
        self.status = status
