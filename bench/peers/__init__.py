"""The peers: a module for each, with its tasks and its producer. They run in a separate environment."""
