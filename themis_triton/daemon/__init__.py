"""Wiring and life of the sidecar: the only place that builds real adapters."""
