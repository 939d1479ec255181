"""Emulated-device models for Triton's Python backend: service times follow a latency surface, answers are exact, no GPU is needed."""
