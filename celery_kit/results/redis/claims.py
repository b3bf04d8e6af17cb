"""Claims on keys, stored in Redis: the atomic steps that `celery_kit/once.py` needs.

A key's value is the claim of the run that holds it, or the result of a run that is done. Only the run whose claim is the whole
value may write it. Source: Redis' documentation of SET, "Patterns" (the value as a token of the lock's owner).
"""

import math
from collections.abc import Sequence
from typing import cast

from redis import Redis, exceptions

from celery_kit.base.lua import script


class Claims:
    """The claims of one Redis server. Times are in seconds. Calls raise one of `unavailable` if the server is."""

    unavailable = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError)

    def __init__(self, client: Redis, prefix: str = "") -> None:
        self._client, self._prefix = client, prefix
        self._claim, self._replace, self._release = (
            client.register_script(script(__name__, name)) for name in ("claim", "replace", "release")
        )

    def claim(self, key: str, mine: bytes, seconds: float, dead: bytes = b"") -> bytes | None:
        """Claim the key if it is free or its value is `dead`, and return None. Otherwise return its value."""
        found = self._claim(keys=[self._prefix + key], args=[mine, int(seconds * 1000), dead])
        return cast(bytes | None, found)

    def replace(self, key: str, mine: bytes, value: bytes, seconds: float) -> bool:
        """Replace my claim by `value`, for so many seconds. False if another run holds the key."""
        return bool(self._replace(keys=[self._prefix + key], args=[mine, value, int(seconds * 1000)]))

    def renew(self, held: Sequence[tuple[str, bytes, float]]) -> list[bool | Exception]:
        """Extend several of my claims - key, claim, seconds - in one round trip.

        Returns for each what `replace` returns, or the error of its key alone.
        """
        with self._client.pipeline(transaction=False) as pipe:
            for key, mine, seconds in held:
                self._replace(keys=[self._prefix + key], args=[mine, mine, int(seconds * 1000)], client=pipe)
            answers = pipe.execute(raise_on_error=False)
        return [answer if isinstance(answer, Exception) else bool(answer) for answer in answers]

    def are_there(self, keys: Sequence[str]) -> list[bool]:
        """Whether somebody has stored each of the keys, by one round trip."""
        return [value is not None for value in self._client.mget([self._prefix + key for key in keys])]

    def note(self, keys: Sequence[tuple[str, float]]) -> None:
        """Store keys, each for so many seconds, by one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            for key, seconds in keys:
                pipe.set(self._prefix + key, 1, ex=math.ceil(seconds))
            pipe.execute()

    def release(self, key: str, mine: bytes) -> None:
        """Free the key, if I still hold it."""
        self._release(keys=[self._prefix + key], args=[mine])
