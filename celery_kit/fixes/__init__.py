"""Faults of Celery and kombu that the kit closes: a file each, with versions, reference, and the test that says
when it can go.
"""
