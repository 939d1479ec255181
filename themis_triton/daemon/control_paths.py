"""Paths of the status API's calls that change the sidecar; the client commands need no more of the daemon."""

PAUSE_PATH, RESUME_PATH, RELOAD_PATH = "/v1/pause", "/v1/resume", "/v1/reload"
PIN_PATH, UNPIN_PATH, BOUNDS_PATH, MODE_PATH = "/v1/pin", "/v1/unpin", "/v1/bounds", "/v1/mode"
DRAIN_PATH, UNDRAIN_PATH = "/v1/drain", "/v1/undrain"
OVERRIDES_FILE = "overrides.json"
