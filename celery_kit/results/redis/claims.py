"""Claims on keys, kept in Redis: what `celery_kit/once.py` needs of a store, each an atomic step.

A key's value is the claim of the run that holds it, or the note of one that is done; who may write it is decided by comparing
the whole value. Source: Redis' documentation of SET, "Patterns" (the value as a token of the lock's owner).
"""

from collections.abc import Sequence
from typing import Any

from redis import Redis, exceptions

from celery_kit.base.lua import script


class Claims:
    """The claims of one Redis server. Times are in seconds. Each call raises one of `away` where the server is."""

    away = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError)

    def __init__(self, client: Redis, prefix: str = "") -> None:
        self._client, self._prefix = client, prefix
        self._claim, self._replace, self._release = (
            client.register_script(script(__name__, name)) for name in ("claim", "replace", "release")
        )

    def claim(self, key: str, mine: bytes, seconds: float, dead: bytes = b"") -> bytes | None:
        """Take the key, if it is free or `dead` stands there: None. Otherwise what stands there."""
        found: Any = self._claim(keys=[self._prefix + key], args=[mine, int(seconds * 1000), dead])
        return found  # type: ignore[no-any-return]

    def replace(self, key: str, mine: bytes, value: bytes, seconds: float) -> bool:
        """Put `value` in the place of my claim, for so long; False if another run has the key."""
        return bool(self._replace(keys=[self._prefix + key], args=[mine, value, int(seconds * 1000)]))

    def renew(self, held: Sequence[tuple[str, bytes, float]]) -> list[bool | Exception]:
        """Put off the end of several of my claims - key, claim, seconds - in one round trip. For each what `replace` gives, or
        the error that its key alone has met.
        """
        with self._client.pipeline(transaction=False) as pipe:
            for key, mine, seconds in held:
                self._replace(keys=[self._prefix + key], args=[mine, mine, int(seconds * 1000)], client=pipe)
            answers = pipe.execute(raise_on_error=False)
        return [answer if isinstance(answer, Exception) else bool(answer) for answer in answers]

    def release(self, key: str, mine: bytes) -> None:
        """Give the key free, if it is still mine."""
        self._release(keys=[self._prefix + key], args=[mine])
