import os
import time
from pathlib import Path

from celery import Task, chord

from shop.celery import app


class LedgerTask(Task):
    """A base class that keeps one open ledger for each worker process."""

    _ledger = None

    @property
    def ledger(self):
        if self._ledger is None:
            self._ledger = Path(os.environ.get("SHOP_LEDGER", "ledger.txt")).open("a", buffering=1)
        return self._ledger


class Charge(LedgerTask):
    name = "payments.charge"

    def run(self, order, cents):
        if cents <= 0:
            raise ValueError(f"order {order}: nothing to charge")
        self.ledger.write(f"charged {order} {cents}\n")
        return {"order": order, "charged": cents}

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.ledger.write(f"failed {args[0]}\n")


charge = app.register_task(Charge())


class WarehouseBusy(Exception):
    pass


@app.task(bind=True, autoretry_for=(WarehouseBusy,), default_retry_delay=1, max_retries=5)
def reserve(self, order):
    """The warehouse takes a reservation at the third try."""
    if self.request.retries < 2:
        raise WarehouseBusy(order)
    return f"order {order} reserved at try {self.request.retries + 1}"


@app.task(name="reports.price")
def price(order):
    return order * 100


@app.task(name="reports.revenue")
def revenue(prices):
    return sum(prices)


@app.task(name="reports.daily")
def daily(orders):
    return chord(price.s(order) for order in orders)(revenue.s()).id


@app.task(base=LedgerTask, bind=True)
def rebuild_catalogue(self, pages):
    self.ledger.write("catalogue started\n")
    for _ in range(pages):
        time.sleep(0.1)
    return pages
