"""An app's table of queues, and the queues of one version: with QUEUE_VERSION=1.4, the queue `mail` is `mail@1.4`.

That holds for each queue that the app or its worker names, for what it sends and for what it consumes. A queue whose name has
an @ already stays: one of a version, or of one worker alone (worker_direct). So does a queue for broadcasts. A queue of a
version has the arguments of the queue that it is named after, and an exchange and a routing key of its own.
"""

from collections.abc import Callable, Mapping, Sequence

from celery.app import amqp, routes
from kombu import Exchange, Queue
from kombu.utils.functional import maybe_list

from celery_kit import brokers
from celery_kit.base.types import Options

#: What stands between a queue's name and its version.
AT = "@"


def of_version(name: str, version: str) -> str:
    """The name of a queue of a version. Without a version, or if it has one already, the name as it is."""
    return f"{name}{AT}{version}" if version and AT not in name else name


class Queues(brokers.Queues):
    """The kit's table of queues, of one version where :meth:`name_after` says so."""

    version = ""
    aliases: Mapping[str, Queue]
    _add_as_celery: Callable[[Queue], Queue] = vars(amqp.Queues)["_add"]  # the stubs lack it

    def name_after(self, version: str) -> None:
        """Make it the table of a version's queues."""
        before = [*self.values()]
        self.clear()
        self.version = version
        #: By name: the exchange and the routing key of the queue that this one is named after.
        self.former: dict[str, tuple[str, str]] = {}
        for queue in before:
            self.add(queue)
        self._default_consume_from = {**self}

    def __getitem__(self, name: str) -> Queue:
        known = name in self or name in self.aliases  # such as a broadcast
        found: Queue = super().__getitem__(name if known else of_version(name, self.version))
        return found

    def _add(self, queue: Queue) -> Queue:
        if of_version(queue.name, self.version) != queue.name and queue.exchange.type != "fanout":
            queue = self._of_version(queue)
        return self._add_as_celery(queue)

    def deselect(self, exclude: str | Sequence[str]) -> None:
        """Do not consume these queues."""
        super().deselect([of_version(name, self.version) for name in maybe_list(exclude) or ()])

    def _of_version(self, queue: Queue) -> Queue:
        made: Queue = queue.__copy__()
        exchange, key = queue.exchange, queue.routing_key or ""
        made.name = of_version(queue.name, self.version)
        made.exchange = Exchange(made.name, exchange.type, durable=exchange.durable)
        if not {"*", "#"} & {*key}:
            made.routing_key = made.name
        self.former[made.name] = exchange.name, key
        return made


class Router(routes.Router):
    """Celery's, for a table of a version's queues: a route that spells out exchange and routing key gets the version's."""

    queues: Queues

    def route(
        self,
        options: Options,
        name: str,
        args: tuple[object, ...] = (),
        kwargs: Options | None = None,
        task_type: type | None = None,
    ) -> Options:
        """Where a message goes, as options of apply_async. As Celery's."""
        found: Options = super().route(options, name, args, kwargs, task_type)
        exchange, key = self.queues.former.get(getattr(found.get("queue"), "name", ""), (None, None))
        if found.get("exchange", exchange) in (exchange, None) and found.get("routing_key", key) == key:
            found = {name: value for name, value in found.items() if name not in ("exchange", "routing_key")}
        return found
