"""The Lua filters of the gRPC side: one selects the route by the model's name, one refuses calls whose deadline is over before any answer.

Between them calls are counted, so that those that are refused are demand too. One in `PROBE_EVERY` of them is let through: without any
answer, a profile with service times that are too long could never be found wrong.
"""

from __future__ import annotations

from themis_triton.adapters.envoy.clusters import Json, typed
from themis_triton.core.routes import RouteLimit

ROUTING, REFUSING = "envoy.filters.http.lua", "themis.deadlines"
LATE_HEADER = "x-themis-late"
"""Marks a call that is refused, from the first filter to the second; one that a client sends is removed."""
PROBE_EVERY = 20
_MIN_DEADLINE, _MODEL = "min_deadline_ms", "model"
# Envoy selected a route when the headers arrived, before the model's name was known.
_ROUTING_CODE = f"""
local unit_ms = {{H = 3600000, M = 60000, S = 1000, m = 1, u = 0.001, n = 0.000001}}
local seen = {{}}
function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("{LATE_HEADER}")
  handle:clearRouteCache()
  local timeout = headers:get("grpc-timeout")
  local route = handle:metadata()
  local least_ms = route:get("{_MIN_DEADLINE}")
  if timeout == nil or least_ms == nil then return end
  local number, unit = string.match(timeout, "^(%d+)([HMSmun])$")
  if number == nil or tonumber(number) * unit_ms[unit] >= least_ms then return end
  local model = route:get("{_MODEL}")
  local count = seen[model] or 0
  seen[model] = (count + 1) % {PROBE_EVERY}
  if count > 0 then headers:add("{LATE_HEADER}", tostring(least_ms)) end
end
"""
_REFUSING_CODE = f"""
function envoy_on_request(handle)
  local headers = handle:headers()
  local least_ms = headers:get("{LATE_HEADER}")
  if least_ms == nil then return end
  local timeout = headers:get("grpc-timeout")
  local message = "Themis: a deadline of " .. timeout .. " cannot be met: the fastest answer takes more than " .. least_ms .. " ms"
  handle:respond({{[":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = "4", ["grpc-message"] = message}})
end
"""


def routing_filter() -> Json:
    """It follows the filter that extracts the model's name, and precedes the counting one."""
    return _lua(ROUTING, _ROUTING_CODE)


def refusing_filter() -> Json:
    """It follows the counting filter."""
    return _lua(REFUSING, _REFUSING_CODE)


def _lua(name: str, code: str) -> Json:
    config = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": code})
    return {"name": name, "typed_config": config}


def deadline_metadata(model: str, limit: RouteLimit) -> Json:
    """What tells the filter the shortest deadline of a route; nothing where there is none."""
    return {ROUTING: {_MIN_DEADLINE: limit.min_deadline_ms, _MODEL: model}} if limit.min_deadline_ms > 0.0 else {}
