"""Lua scripts for Redis, each a `.lua` file beside the module that uses it; and the answers of a server that cannot write."""

from importlib.resources import files

#: How the answers begin of a server that cannot write: its disk or its memory is full, its replicas are away, or it is one.
UNWRITABLE = ("MISCONF", "OOM ", "NOREPLICAS", "READONLY")


def cannot_write(error: BaseException) -> bool:
    """Whether a server has answered that it cannot write for now."""
    return any(word in str(error) for word in UNWRITABLE)


def script(module: str, name: str) -> str:
    """The text of `<name>.lua` beside a module. `module`: the `__name__` of that module. Raises FileNotFoundError."""
    return files(module.rpartition(".")[0]).joinpath(f"{name}.lua").read_text("utf-8")
