"""Helpers of all suites: start servers, workers and other processes, and wait for them."""
