"""Exact solvers on latency surfaces: arrays in, plans out; Numba kernels with a pure-Python reference as their oracle."""
