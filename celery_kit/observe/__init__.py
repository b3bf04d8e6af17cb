"""Logs, health, traces, task runs and beat: what a process reports about itself."""
