"""Servers and environments that the tests and the benchmark run on."""
