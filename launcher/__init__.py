"""rmlaunch: a declarative launcher and supervisor for model servers.

Names are imported when they are asked for: `import launcher` alone loads neither Hydra nor a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

#: The only place that has the version: the build reads it too. Asking importlib.metadata takes longer than this import.
__version__ = "0.2.0"

if TYPE_CHECKING:
    from engines.base import InferenceError as InferenceError
    from engines.base import RmLaunchError as RmLaunchError
    from launcher.serving import DeviceTarget as DeviceTarget
    from launcher.serving import ServingConfig as ServingConfig
    from launcher.serving import ServingEngine as ServingEngine
    from launcher.serving import ServingEngineType as ServingEngineType
    from launcher.serving import create_serving_engine as create_serving_engine
    from launcher.serving import launch as launch

__all__ = [
    "DeviceTarget",
    "InferenceError",
    "RmLaunchError",
    "ServingConfig",
    "ServingEngine",
    "ServingEngineType",
    "__version__",
    "create_serving_engine",
    "launch",
]

_ERRORS = ("InferenceError", "RmLaunchError")


if not TYPE_CHECKING:  # else a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("engines.base" if name in _ERRORS else "launcher.serving"), name)
