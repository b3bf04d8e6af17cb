"""What a broker, a result backend or a pool cannot do, or does differently: the rows of the capability tables.

A feature has the name of its test in the support matrix (`tests/integration/`): `soft_time_limit` is `test_soft_time_limit`.
A feature without a row works as Celery documents it. The matrix, the docs and the refusals at start read these rows, and a test
asserts what each row says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Limit:
    """One row. `what`: what happens instead, in a sentence. `reference`: where that is documented, or which test shows it."""

    kind: Literal["cannot", "differently"]
    what: str
    reference: str


#: Celery's documentation, for references.
DOCS = "https://docs.celeryq.dev/en/v5.7.0"

#: By feature.
Limits = Mapping[str, Limit]
