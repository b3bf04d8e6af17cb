"""Redis as the broker, and every server that speaks its protocol."""
