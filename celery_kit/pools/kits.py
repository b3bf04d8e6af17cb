"""Which class of a pool a worker of a kit's app gets."""

from celery.concurrency.base import BasePool
from celery.utils.imports import symbol_by_name

from celery_kit.pools.in_children import InChildren
from celery_kit.pools.in_process import InProcess
from celery_kit.pools.table import row


def kits(implementation: type) -> type:
    """The class that a worker of a kit's app gets in place of `implementation`, a pool's class.

    That is the kit's class for one of Celery's own. A user's class keeps its name and comes first in a class of both: the other
    is the kit's class of the pool that it derives from, or else :class:`InChildren` or :class:`InProcess`.
    """
    if not issubclass(implementation, BasePool) or issubclass(implementation, (InProcess, InChildren)):
        return implementation
    known = next((pool for base in implementation.__mro__ if (pool := row(base))), None)
    if known:
        kind: type = symbol_by_name(known.kind)
        if row(implementation):
            return kind
        bases = implementation, kind
    else:
        bases = InChildren if implementation.uses_semaphore else InProcess, implementation
    about = {"__module__": implementation.__module__, "__qualname__": implementation.__qualname__}
    return type(implementation.__name__, bases, about)
