"""`themis top`: the status of a running sidecar, live in a terminal. It is a client of the status API."""
