"""A worker's start, its loop, its dead letters, its end."""
