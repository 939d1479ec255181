"""In-place resize of a pod (Kubernetes 1.33 and later): more processor time and memory before more instances are loaded."""

from __future__ import annotations

import structlog

from themis_triton.adapters.kubernetes.api import ApiError, PodApi
from themis_triton.adapters.kubernetes.pods import PARTS, condition, has_ended, has_resources, resizable, resources_for
from themis_triton.adapters.kubernetes.quantities import parse_quantity
from themis_triton.adapters.kubernetes.template import Json, triton_container
from themis_triton.adapters.kubernetes.watch import PodWatch
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import ChangeRefusedError
from themis_triton.core.fleet import Models

log = structlog.get_logger()


async def resize_pod(api: PodApi, watch: PodWatch, config: KubernetesLaunchConfig, name: str, base: Json, models: Models) -> None:
    """Give the pod the template's resources and those of these instances; returns once its container has them.

    A shrink that is refused is left out: the pod then has more than it needs.

    Raises:
        ChangeRefusedError: its node lacks the room, or did not decide in time; the pod has what it had.
    """
    pod = (await watch.pods()).get(name)
    wanted = resizable(resources_for(base, models, config))
    if not wanted or pod is None or has_resources(pod, wanted, actual=False):
        return
    container = triton_container(pod)
    before = resizable(container.get("resources") or {})
    grows = _grows(before, wanted)
    try:
        await api.resize_pod(name, container["name"], wanted)
    except ApiError as error:
        if not grows:
            log.info("pod_not_shrunk", pod=name, error=str(error))
            return
        raise ChangeRefusedError(f"pod {name}: {error}") from error

    def decided(pod: Json | None) -> bool:
        return pod is None or has_ended(pod) or _is_infeasible(pod) or _is_done(pod, wanted)

    resized = await watch.wait_for(name, decided, config.resize_timeout_s if grows else 0.0)
    if resized is None or not grows or _is_done(resized, wanted):
        return
    await api.resize_pod(name, container["name"], before)
    pending = condition(resized, "PodResizePending")
    why = ": ".join(str(pending[part]) for part in ("reason", "message") if pending.get(part)) or "the node has not carried it out"
    raise ChangeRefusedError(
        f"pod {name} could not be resized in place within {config.resize_timeout_s:g} s ({why}). "
        "Fix: give its node room, or lower launch.kubernetes.instance_cpu and instance_memory"
    )


def _grows(before: Json, wanted: Json) -> bool:
    pairs = [((before.get(part) or {}).get(name, 0), each) for part in PARTS for name, each in wanted.get(part, {}).items()]
    return any(parse_quantity(after) > parse_quantity(now) for now, after in pairs)


def _is_infeasible(pod: Json) -> bool:
    pending = condition(pod, "PodResizePending")
    return pending.get("status") == "True" and pending.get("reason") == "Infeasible"


def _is_done(pod: Json, wanted: Json) -> bool:
    return has_resources(pod, wanted, actual=True) and condition(pod, "PodResizeInProgress").get("status") != "True"
