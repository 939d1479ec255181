"""What a server can do, by the extensions that it names and the metrics that it shows; its version number decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator

NEEDED_EXTENSIONS = {
    "model_configuration": "instance counts cannot be read, so that nothing can be planned",
    "model_repository": "models cannot be changed in place, and the index of its models cannot be read",
    "statistics": "executed batches are unknown, so that drift is not noticed and service times are not learnt",
}
"""What Themis uses, with what is lost where a server lacks it."""
_PENDING = b"nv_inference_pending_request_count"


def lacking_extensions(extensions: Collection[str]) -> Iterator[str]:
    """Each extension that the server does not name, with the consequence."""
    for name, consequence in NEEDED_EXTENSIONS.items():
        if name not in extensions:
            yield f"extension {name}: {consequence}"


def lacks_pending(page: bytes) -> bool:
    """Whether a page of metrics shows models, but not how many requests wait; Triton does since 2.34."""
    return b"nv_inference_request_success{" in page and _PENDING not in page
