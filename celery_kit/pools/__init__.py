"""The pools: what each can do, and how a task is ended on it."""
