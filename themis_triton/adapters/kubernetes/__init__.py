"""Servers as pods of a Kubernetes cluster."""
