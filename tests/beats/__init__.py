"""Several beats, of which one leads, under faults: `make test-beats`."""
