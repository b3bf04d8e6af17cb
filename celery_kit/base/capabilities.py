"""What a broker, a backend or a pool cannot do, or does differently, as data: the rooms' tables are made of these rows.

The features are the rows of the support matrix, by the names of its tests (`tests/integration/`): `soft_time_limit` is
`test_soft_time_limit`. What no row names works as Celery documents it. The matrix, the docs and the refusals at start all read
these rows, and a test asserts each: what happens there instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Limit:
    """One such row. `what`: what happens instead, in a sentence; `reference`: where that is documented or was seen."""

    kind: Literal["cannot", "differently"]
    what: str
    reference: str


#: Celery's documentation, for references.
DOCS = "https://docs.celeryq.dev/en/v5.7.0"

Limits = Mapping[str, Limit]
