"""elastic-apm; what it sends goes to COLLECTOR."""

import os
from typing import Any

import elasticapm
from elasticapm.contrib.celery import register_exception_tracking, register_instrumentation

from tests.packages.cases.tasks import send_each_way

client = elasticapm.Client(
    {
        "SERVICE_NAME": "packages",
        "SERVER_URL": f"http://{os.environ['COLLECTOR']}",
        "API_REQUEST_TIME": "100ms",
        "CENTRAL_CONFIG": False,
        "CLOUD_PROVIDER": "none",
        "METRICS_INTERVAL": "0s",
    }
)
register_exception_tracking(client)
register_instrumentation(client)


def sent() -> Any:
    """Tasks within a transaction, each way that they can be sent; gives the transaction's trace."""
    transaction = client.begin_transaction("test")
    send_each_way()
    client.end_transaction("producer", "done")
    client.close()
    return transaction.trace_parent.trace_id
