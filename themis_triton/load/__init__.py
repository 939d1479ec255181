"""Open-loop load: traces, arrivals, and a generator that sends without waiting for responses."""
