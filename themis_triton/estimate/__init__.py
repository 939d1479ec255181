"""Counters to rates, windows, growth, backlog and latency percentiles; pure functions over an immutable history."""
