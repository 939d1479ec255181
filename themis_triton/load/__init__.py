"""Open-loop load: traces, arrivals, and a generator that never waits for answers before it sends."""
