"""The command line and the stacks."""
