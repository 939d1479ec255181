"""Measures a model's service times, memory and start times, and which operations are safe, on a real Triton."""
