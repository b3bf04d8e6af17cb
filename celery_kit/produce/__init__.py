"""How a task gets to the broker."""
