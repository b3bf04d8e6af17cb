import time

from celery import shared_task

from .models import Order, Run


@shared_task
def pay(number):
    """The order is there: its transaction was committed before this task was sent."""
    order = Order.objects.get(pk=number)
    order.state = "paid"
    order.save(update_fields=["state"])
    return order.cents


@shared_task
def send_receipt(number):
    Order.objects.filter(pk=number).update(receipt=f"receipt for {number}")


@shared_task
def refund(number):
    raise Order.DoesNotExist(f"no order {number} to refund")


@shared_task(bind=True, max_retries=5)
def ship(self, number):
    if self.request.retries < 2:
        raise self.retry(countdown=1)
    return f"order {number} shipped at try {self.request.retries + 1}"


@shared_task
def price(number):
    return number * 100


@shared_task
def revenue(prices):
    return sum(prices)


@shared_task
def export(pages):
    Run.objects.create(job="export")
    for _ in range(pages):
        time.sleep(0.1)
    return pages
