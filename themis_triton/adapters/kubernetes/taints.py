"""Taints of nodes, beside the tolerations of a pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REPELLING = ("NoSchedule", "NoExecute")
"""The effects that keep a pod from a node; PreferNoSchedule does not."""


def refused_taints(node: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
    """The taints of a node for which no such pod is scheduled there, as `key=value:effect`. `node` and `pod`: their `spec`s."""
    tolerations = pod.get("tolerations") or ()
    taints = [taint for taint in node.get("taints") or () if taint.get("effect") in _REPELLING]
    return [_words(taint) for taint in taints if not any(_tolerates(each, taint) for each in tolerations)]


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Kubernetes' rule: no effect is any effect, no key is any key, and `Exists` is any value. Other operators tolerate nothing here."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    operator = toleration.get("operator") or "Equal"
    if not toleration.get("key"):
        return operator == "Exists"
    if toleration["key"] != taint["key"]:
        return False
    return operator == "Exists" or (operator == "Equal" and (toleration.get("value") or "") == (taint.get("value") or ""))


def _words(taint: Mapping[str, Any]) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"
