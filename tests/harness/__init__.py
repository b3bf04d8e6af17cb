"""What starts servers, workers and other processes, and waits for them: shared by all suites."""
