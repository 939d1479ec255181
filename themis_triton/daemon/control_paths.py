"""Paths of the status API's calls that change the sidecar; the client commands need no more of the daemon."""

PAUSE_PATH, RESUME_PATH, RELOAD_PATH = "/v1/pause", "/v1/resume", "/v1/reload"
PIN_PATH, UNPIN_PATH, MODE_PATH = "/v1/pin", "/v1/unpin", "/v1/mode"
OVERRIDES_FILE = "overrides.json"
