"""The task codebase. Every module in this folder registers itself; `mail.py`'s `send_email` is the task `mail.send_email`."""
