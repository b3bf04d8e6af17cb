"""Redis as the result backend."""
