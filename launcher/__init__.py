"""rmlaunch: a declarative launcher and supervisor for model servers.

Names are imported when they are asked for: `import launcher` alone loads neither Hydra nor a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.base import InferenceError as InferenceError
    from engines.base import RmLaunchError as RmLaunchError
    from launcher.serving import ServingEngine as ServingEngine
    from launcher.serving import launch as launch

__all__ = ["InferenceError", "RmLaunchError", "ServingEngine", "launch"]

_HOME = {
    "InferenceError": "engines.base",
    "RmLaunchError": "engines.base",
    "ServingEngine": "launcher.serving",
    "launch": "launcher.serving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
