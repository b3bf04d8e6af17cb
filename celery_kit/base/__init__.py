"""What every part of the kit may use."""
