"""Modules of the system as they were before a green pool patched them, for a thread that must run while greenlets compute."""

import sys
from importlib import import_module
from types import ModuleType


def unpatched(name: str) -> ModuleType:
    """A module of the standard library, without the patches of gevent or eventlet."""
    module = import_module(name)
    if monkey := sys.modules.get("gevent.monkey"):
        names, found = list(vars(module)), ModuleType(name)
        vars(found).update(zip(names, monkey.get_original(name, names), strict=True))
        return found
    patcher = sys.modules.get("eventlet.patcher")
    original: ModuleType = patcher.original(name) if patcher else module
    return original
