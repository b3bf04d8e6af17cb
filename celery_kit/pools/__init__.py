"""The pools: what each can do, and how it enforces time limits and termination."""
