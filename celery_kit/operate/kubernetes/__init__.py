"""Kubernetes: a folder for `kubectl apply -k`, its Secrets, and what must be true of what it renders."""
