"""Lua scripts for Redis: each is a `.lua` file beside the module that uses it."""

from importlib.resources import files


def script(module: str, name: str) -> str:
    """The text of `<name>.lua` beside a module. `module`: the `__name__` of that module. Raises FileNotFoundError."""
    return files(module.rpartition(".")[0]).joinpath(f"{name}.lua").read_text("utf-8")
