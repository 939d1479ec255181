"""The error tree: errors that a user can cause or must know, with exit codes for the command line."""


class ThemisError(Exception):
    """Root of every error that Themis raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class SettingsError(ThemisError):
    """A settings or profile file is wrong; the message names file, line, key, value and what is expected."""

    exit_code = 2


class EnvironmentCheckError(ThemisError):
    """Something that must be installed, free or reachable on this machine is not."""

    exit_code = 3


class LeadershipLostError(ThemisError):
    """This sidecar does not lead any more, so that it must change nothing."""


class ServerError(ThemisError):
    """A Triton server or the proxy refused, failed or did not answer in time."""

    exit_code = 4


class ChangeRefusedError(ServerError):
    """A model-control call was answered with an error; the old state still serves."""


class DeviceRefusedError(ChangeRefusedError):
    """A model's instances cannot be on another device of its server, whatever the load."""


class LaunchFailedError(ServerError):
    """A server did not become ready; the message names its log file."""


class ModelFailedError(LaunchFailedError):
    """One model of a server did not come up: `cause` in the server's words; `remedy` empty if the cause has it; `step` that failed."""

    step = "loading"

    def __init__(self, message: str, model: str, cause: str, remedy: str) -> None:
        super().__init__(message)
        self.model = model
        self.cause = cause
        self.remedy = remedy


class WarmupFailedError(ModelFailedError):
    """A model of a server that is ready did not answer its warm-up rightly."""

    step = "warm-up"


class SolverError(ThemisError):
    """A problem handed to a solver is malformed (not: infeasible, which is a value)."""
