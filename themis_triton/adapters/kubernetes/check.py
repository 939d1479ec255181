"""The live check of a cluster: its API answers, and the sidecar may do what it will."""

from __future__ import annotations

import os

from themis_triton.adapters.findings import Finding, fine, missing, unanswered
from themis_triton.adapters.kubernetes.api import PodApi
from themis_triton.adapters.kubernetes.pods import selector
from themis_triton.core.config import KubernetesLaunchConfig
from themis_triton.core.errors import EnvironmentCheckError, ServerError

_WHAT = "launch.kubernetes"


async def check_cluster(launch: KubernetesLaunchConfig) -> list[Finding]:
    """Whether pods can be listed in the namespace, and whether the key of model control can be read."""
    return [await _check_pods(launch), _check_key(launch)]


async def _check_pods(launch: KubernetesLaunchConfig) -> Finding:
    api = PodApi(launch)
    try:
        pods, _ = await api.list_pods(selector(launch.sidecar))
        if launch.owner_deployment is not None:
            await api.read_deployment(launch.owner_deployment)
    except EnvironmentCheckError as error:
        fault, _, fix = str(error).partition(". Fix: ")
        return missing(_WHAT, fault, fix)
    except ServerError as error:
        fault, _, fix = str(error).partition(". Fix: ")
        return unanswered(_WHAT, fault, fix or "see that the API server can be reached from here, and the namespace exists")
    finally:
        await api.close()
    return fine(_WHAT, f"namespace {launch.namespace} has {len(pods)} pods of sidecar {launch.sidecar}")


def _check_key(launch: KubernetesLaunchConfig) -> Finding:
    what = f"{_WHAT}.key_file"
    if os.access(launch.key_file, os.R_OK):
        return fine(what, f"{launch.key_file} can be read")
    return missing(what, f"{launch.key_file} cannot be read", f"mount the Secret {launch.key_secret} there")
