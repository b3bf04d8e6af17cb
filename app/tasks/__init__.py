"""The tasks. Celery imports every module in this folder; `send_email` in `mail.py` is the task `mail.send_email`."""
