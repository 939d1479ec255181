"""Ordered actions from what runs to the target, and the route table, as pure functions."""
