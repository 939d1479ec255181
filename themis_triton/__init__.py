"""Themis for Triton: keeps models served by NVIDIA Triton inside their latency SLOs at the least cost."""

__version__ = "0.1.0"
