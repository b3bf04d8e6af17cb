import json
from functools import partial

from celery.result import AsyncResult
from django.db import transaction
from django.http import JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST
from django_celery_results.models import TaskResult

from .models import Order
from .tasks import pay, send_receipt


@require_POST
def place(request):
    """Nothing is sent before the order can be seen by a worker."""
    with transaction.atomic():
        order = Order.objects.create(cents=json.loads(request.body)["cents"])
        pay.delay_on_commit(order.pk)
        transaction.on_commit(partial(send_receipt.delay, order.pk))
    return JsonResponse({"number": order.pk}, status=201)


def show(request, number):
    order = get_object_or_404(Order, pk=number)
    return JsonResponse({"number": order.pk, "state": order.state, "receipt": order.receipt})


def task(request, task_id):
    """As Celery has it, and as the database has it where django-celery-results keeps it there."""
    row = TaskResult.objects.filter(task_id=task_id).first()
    return JsonResponse({"state": AsyncResult(task_id).state, "in the database": row.status if row else None})
