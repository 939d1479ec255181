"""Themis for Triton: keeps models served by NVIDIA Triton within their latency SLOs at the lowest cost."""

__version__ = "0.1.0"
