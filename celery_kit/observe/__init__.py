"""Logs, health, traces, beat: what a process tells of itself."""
