"""Ports over real parts: Triton, Envoy, NVML, processes and files."""
