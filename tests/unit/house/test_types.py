"""Annotations say what a value is: `Any` gets rarer in each package, and never more frequent."""

import ast

from celery_kit.base.target import ROOT

#: By package of celery_kit, or module beside the packages: how often its code names `Any`. Lower a number with each use that
#: goes.
MOST: dict[str, int] = {
    "__init__.py": 0,
    "base": 19,
    "brokers": 2,
    "defaults.py": 0,
    "engine": 4,
    "fixes": 6,
    "kit.py": 11,
    "observe": 8,
    "operate": 14,
    "pools": 5,
    "produce": 18,
    "results": 0,
}


def uses() -> dict[str, int]:
    """The same as in the table, counted now."""
    kit, found = ROOT / "celery_kit", dict.fromkeys(MOST, 0)
    for path in kit.rglob("*.py"):
        place = path.relative_to(kit).parts[0]
        nodes = ast.walk(ast.parse(path.read_text()))
        found[place] = found.get(place, 0) + sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    return found


def test_no_package_names_any_more_often_than_before() -> None:
    more = {place: number for place, number in uses().items() if number > MOST.get(place, 0)}
    assert not more, f"celery_kit/base/types.py names what Celery, kombu and py-amqp give; too often Any: {more}"
