"""The users of RabbitMQ and their rights, as objects of its topology operator, from the table that its start.sh reads."""

from celery_kit.base.target import ROOT
from celery_kit.base.types import Options

TABLE = ROOT / "deploy/brokers/rabbitmq/permissions"
API, VHOST = "rabbitmq.com/v1beta1", "kit"
CLUSTER: Options = {"rabbitmqClusterReference": {"name": "rabbitmq"}}
#: The pattern of a UUID, as in start.sh.
REPLIES = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
RIGHTS = ("configure", "write", "read")


def manifests() -> list[Options]:
    """A User for each role, whose name and password are in the Secret `broker-ROLE`, and its Permission."""
    rows = [line.split(" ") for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    return [made for role, tag, *rights in rows for made in _of(f"broker-{role}", tag, rights)]


def _of(name: str, tag: str, rights: list[str]) -> tuple[Options, Options]:
    patterns = {kind: pattern.replace("@REPLIES@", REPLIES) for kind, pattern in zip(RIGHTS, rights, strict=True)}
    tags = {} if tag == "-" else {"tags": [tag]}
    user = {**CLUSTER, "importCredentialsSecret": {"name": name}, **tags}
    permission = {**CLUSTER, "vhost": VHOST, "userReference": {"name": name}, "permissions": patterns}
    return _object("User", name, user), _object("Permission", name, permission)


def _object(kind: str, name: str, spec: Options) -> Options:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}
