from django.db import models


class Order(models.Model):
    cents = models.IntegerField()
    state = models.CharField(max_length=20, default="placed")
    receipt = models.CharField(max_length=100, default="")


class Run(models.Model):
    """A line for each time that a long job began."""

    job = models.CharField(max_length=100)
