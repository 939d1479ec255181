"""Why a server that was launched here does not serve, in the words of its log."""

from __future__ import annotations

from collections.abc import Collection

from themis_triton.adapters.server_files import ServerFiles
from themis_triton.core.errors import LaunchFailedError, ModelFailedError, WarmupFailedError
from themis_triton.core.fleet import Server


def launch_failure(files: ServerFiles, server: Server, what: str) -> LaunchFailedError:
    """The error for a server that did not become ready, with the log's last lines; of its model where the log names that."""
    words = f"server {server.name} on slot {server.slot} {what}; {files.log_tail()}"
    failure = files.load_failure()
    if failure is None or failure[0] not in server.models:
        return LaunchFailedError(words)
    return ModelFailedError(words, *failure, f"correct its files or its config.pbtxt; log {files.log}")


def warmup_failure(files: ServerFiles, server: Server, models: Collection[str]) -> LaunchFailedError:
    """The error for a server whose process ended in the warm-up of these models; of several it is not known which one ended it."""
    cause = "the server's process ended in it"
    if len(models) > 1:
        then = "the next one on this slot warms up one model after the other, to find out which one ends it"
        return LaunchFailedError(f"server {server.name} ended in the warm-up of {', '.join(sorted(models))}; {then}; {files.log_tail()}")
    (model,) = models
    words = f"server {server.name}: warm-up of model {model} failed: {cause}; {files.log_tail()}"
    return WarmupFailedError(words, model, cause, f"mend the model, or give it inputs that it takes; log {files.log}")
