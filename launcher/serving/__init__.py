"""The user's handle on a model server. Names are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.serving.config import DeviceTarget as DeviceTarget
    from launcher.serving.config import ServingConfig as ServingConfig
    from launcher.serving.config import ServingEngineType as ServingEngineType
    from launcher.serving.config import create_serving_engine as create_serving_engine
    from launcher.serving.engine import ServingEngine as ServingEngine
    from launcher.serving.engine import launch as launch

__all__ = ["DeviceTarget", "ServingConfig", "ServingEngine", "ServingEngineType", "create_serving_engine", "launch"]


if not TYPE_CHECKING:  # else a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "engine" if name in ("ServingEngine", "launch") else "config"
        return getattr(import_module(f"{__name__}.{home}"), name)
