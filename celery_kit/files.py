"""The folder that tasks read and write: DATA_DIR, a volume in the stacks."""

from pathlib import Path

from celery_kit.base.choices import data_dir


def inside(name: str) -> Path:
    """The path of `name` below DATA_DIR. Makes its folder. Raises ValueError for a path that leads out of DATA_DIR."""
    folder = data_dir()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{name} leads out of DATA_DIR")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
