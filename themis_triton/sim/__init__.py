"""The same loop over a virtual cluster: a seeded, request-level simulation of servers, batchers and proxies."""
