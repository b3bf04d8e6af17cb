"""RabbitMQ, with its management interface."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import requests

from celery_kit.base.target import ROOT
from celery_kit.brokers.rabbitmq.cluster import HOSTS
from testbed.servers.contract import ADMIN, APP, PASSWORD, SECURE, TRUSTED, Container, Faults, Port, Server


def virtual_host(api: str, name: str) -> str:
    """Create a virtual host, by RabbitMQ's management interface at the URL `api`. Each user of the stack has the same rights as
    in the stack's own. Returns its name.
    """
    options: Any = {"auth": (ADMIN, PASSWORD), "timeout": 30, "verify": TRUSTED}
    requests.put(f"{api}/vhosts/{name}", **options).raise_for_status()
    (found := requests.get(f"{api}/vhosts/{APP}/permissions", **options)).raise_for_status()
    for one in found.json():
        rights = {kind: one[kind] for kind in ("configure", "write", "read")}
        requests.put(f"{api}/permissions/{name}/{one['user']}", json=rights, **options).raise_for_status()
    return name


def _api(port: Port) -> str:
    return f"http{'' if TRUSTED is True else 's'}://127.0.0.1:{port(15672)}/api"


def _version(port: Port) -> str:
    found = requests.get(f"{_api(port)}/overview", auth=(APP, PASSWORD), timeout=10, verify=TRUSTED).json()
    return f"RabbitMQ {found['rabbitmq_version']}"


def _no_connections(port: Port) -> Callable[[], Any]:
    api = _api(port)
    session = requests.Session()
    session.auth, session.verify = (ADMIN, PASSWORD), TRUSTED
    session.trust_env = False  # else a variable of the machine would take the place of `verify`
    limit = f"{api}/vhost-limits/kit/max-connections"
    session.put(limit, json={"value": 0}, timeout=10).raise_for_status()
    for connection in session.get(f"{api}/connections", timeout=10).json():
        session.delete(f"{api}/connections/{quote(connection['name'])}", timeout=10)
    return lambda: session.delete(limit, timeout=10).raise_for_status()


server = Server(
    url=f"amqp://{APP}:{PASSWORD}@{{host}}:{{port}}/{{namespace}}",
    port=5672,
    default="kit",
    namespace=lambda number, port: virtual_host(_api(port), f"test{number}"),
    version=_version,
    container=Container(
        image=("RABBITMQ_IMAGE", "rabbitmq:4-management"),
        data="/var/lib/rabbitmq",
        uid=999,
        files={
            str(ROOT / "deploy/brokers/rabbitmq/celery-kit.conf"): "/etc/rabbitmq/conf.d/20-celery-kit.conf",
            str(ROOT / f"deploy/brokers/rabbitmq/listeners{SECURE and '-tls'}.conf"): "/etc/rabbitmq/conf.d/21-listeners.conf",
            str(ROOT / "deploy/brokers/rabbitmq/start.sh"): "/usr/local/bin/start.sh",
            str(ROOT / "deploy/brokers/rabbitmq/permissions"): "/usr/local/lib/celery-kit/permissions",
            str(ROOT / "deploy/compose/keys.sh"): "/usr/local/lib/celery-kit/keys.sh",
        },
        passwords=("RABBITMQ_DEFAULT_PASS", "ADMIN_PASSWORD"),
        command=("bash", "/usr/local/bin/start.sh"),
        environment={"CONSUMER_TIMEOUT": "30000000", "KEYS": "/var/lib/rabbitmq/celery-kit"},
        ports=(15672,),
    ),
    faults=Faults(
        memory=(
            ("rabbitmqctl", "-q", "set_vm_memory_high_watermark", "absolute", "1MB"),
            ("rabbitmqctl", "-q", "set_vm_memory_high_watermark", "0.6"),
        ),
        leave=20_000_000,  # below its disk_free_limit of 50 MB
        no_connections=_no_connections,
        quiet=30.0,
    ),
)

cluster = replace(server, hosts=HOSTS)
