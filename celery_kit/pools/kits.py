"""Which class of a pool a worker of a kit's app gets."""

from typing import Any

from celery.concurrency.base import BasePool
from celery.utils.imports import symbol_by_name

from celery_kit.pools.in_children import InChildren
from celery_kit.pools.in_process import InProcess
from celery_kit.pools.table import row


def kits(implementation: type[Any]) -> type[Any]:
    """The class that a worker of a kit's app gets in place of `implementation`, a pool's class.

    The kit's, where it is Celery's own. A class of the user's own keeps its name and comes first: it is combined with the kit's
    class where it derives from one of Celery's pools, else with what every pool of its sort has.
    """
    if not issubclass(implementation, BasePool) or issubclass(implementation, (InProcess, InChildren)):
        return implementation
    known = next((pool for base in implementation.__mro__ if (pool := row(base))), None)
    if known:
        kind: type[Any] = symbol_by_name(known.kind)
        if row(implementation):
            return kind
        bases = implementation, kind
    else:
        bases = InChildren if implementation.uses_semaphore else InProcess, implementation
    about = {"__module__": implementation.__module__, "__qualname__": implementation.__qualname__}
    return type(implementation.__name__, bases, about)
