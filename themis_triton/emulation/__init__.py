"""Emulated models for Triton's Python backend: service times follow a latency surface, responses are exact, no GPU is needed."""
