"""Queue time: the baseline that many users of Triton run today, a Kubernetes autoscaler on the servers' queue time.

The rule is that of the HorizontalPodAutoscaler, driven by KEDA with the metric, the threshold and the behaviour that SuperSONIC's chart
ships: `rate(nv_inference_queue_duration_us[15s]) / rate(nv_inference_exec_count[15s])` against 100 ms; one server more a minute after
60 s, one fewer in two minutes after 600 s.
"""

from __future__ import annotations

import math
from dataclasses import replace

from themis_triton.core.policy import PolicyName, QueueTimeConfig
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import PolicyResult, leaving
from themis_triton.decide.state import AutoscalerState, Group, PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand
from themis_triton.evaluation.horizontal import FleetTarget, efficient_instances, fixed_instances, fleet_proposal

WINDOW_S = 15.0
SYNC_S = 15.0
TOLERANCE = 0.1
ADD_PERIOD_S, REMOVE_PERIOD_S = 60.0, 120.0
"""At most one server is added, or removed, in such a period."""


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """Servers with fixed instances, as many as the autoscaler of their group says."""
    policy, demand = view.rules.config.policy, baseline_demand(view)
    instances = state.fixed_instances or efficient_instances(view.problem, policy.horizontal.instances)
    known = state.autoscalers or tuple(AutoscalerState() for _ in view.groups)
    scaled = tuple(_scaled(each, group, view, policy.queue_time) for each, group in zip(known, view.groups, strict=True))
    desired = tuple(each.servers for each in scaled)
    target = FleetTarget(demand, instances, view.joint(demand, instances=instances), desired, leaving(view, desired))
    return PolicyResult(replace(state, fixed_instances=instances, autoscalers=scaled), fleet_proposal(view, target))


def _scaled(state: AutoscalerState, group: Group, view: PipelineView, config: QueueTimeConfig) -> AutoscalerState:
    """The autoscaler after this tick; it decides once a sync period."""
    now_s, ready = view.at_s, len(group.ready)
    if not state.servers:
        state = replace(state, servers=max(1, ready), next_at_s=now_s, recommended=((now_s, max(1, ready)),))
    if now_s < state.next_at_s:
        return state
    metric_ms = queue_time_ms(group, view)
    wanted = min(recommended(metric_ms / config.threshold_ms, ready, state.servers), view.rules.max_servers)
    keep_s = max(config.scale_out_stabilization_s, config.scale_in_stabilization_s)
    window = tuple(entry for entry in (*state.recommended, (now_s, wanted)) if entry[0] > now_s - keep_s)
    changes = tuple(entry for entry in state.changes if entry[0] > now_s - max(ADD_PERIOD_S, REMOVE_PERIOD_S))
    servers = within_pace(stabilized(window, state.servers, now_s, config), state.servers, changes, now_s)
    if servers != state.servers:
        changes = (*changes, (now_s, servers - state.servers))
    return replace(state, servers=servers, next_at_s=now_s + SYNC_S, recommended=window, changes=changes)


def queue_time_ms(group: Group, view: PipelineView) -> float:
    """Queue time per executed batch of the group's models; 0 where none was executed."""
    models = [view.models[name] for name in group.names if name in view.models]
    batches = sum(model.batch_rps for model in models)
    return 1000.0 * sum(model.waiting for model in models) / batches if batches else 0.0


def recommended(ratio: float, ready: int, servers: int) -> int:
    """The servers for a ratio of metric and threshold: in proportion to the ready ones, unchanged within the tolerance."""
    return servers if abs(ratio - 1.0) <= TOLERANCE else max(1, math.ceil(ratio * ready))


def stabilized(window: tuple[tuple[float, int], ...], servers: int, now_s: float, config: QueueTimeConfig) -> int:
    """The count nearest to the present one between the least recommended in the one window and the largest in the other."""
    least = min(count for at_s, count in window if at_s > now_s - config.scale_out_stabilization_s or at_s == now_s)
    largest = max(count for at_s, count in window if at_s > now_s - config.scale_in_stabilization_s or at_s == now_s)
    return min(max(servers, least), largest)


def within_pace(desired: int, servers: int, changes: tuple[tuple[float, int], ...], now_s: float) -> int:
    """The desired count, at most one away from that at the start of the direction's period."""
    if desired > servers:
        added = sum(change for at_s, change in changes if at_s > now_s - ADD_PERIOD_S)
        return max(servers, min(desired, servers - added + 1))
    removed = sum(change for at_s, change in changes if at_s > now_s - REMOVE_PERIOD_S)
    return min(servers, max(desired, servers - removed - 1))


QUEUE_TIME = Policy(PolicyName.QUEUE_TIME, propose, work_window_s=WINDOW_S, fixed_instances=fixed_instances)
