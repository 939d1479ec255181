"""The Lua filter of the gRPC side: selects the route by the model's name, and refuses calls whose deadline is over before any answer."""

from __future__ import annotations

from themis_triton.adapters.envoy.clusters import Json, typed
from themis_triton.core.routes import RouteLimit

LUA = "envoy.filters.http.lua"
_MIN_DEADLINE = "min_deadline_ms"
# Envoy selected a route when the headers arrived, before the model's name was known.
_CODE = """
local unit_ms = {H = 3600000, M = 60000, S = 1000, m = 1, u = 0.001, n = 0.000001}
function envoy_on_request(handle)
  handle:clearRouteCache()
  local timeout = handle:headers():get("grpc-timeout")
  local least_ms = handle:metadata():get("min_deadline_ms")
  if timeout == nil or least_ms == nil then return end
  local number, unit = string.match(timeout, "^(%d+)([HMSmun])$")
  if number == nil or tonumber(number) * unit_ms[unit] >= least_ms then return end
  local message = "Themis: a deadline of " .. timeout .. " cannot be met: the fastest answer takes more than " .. least_ms .. " ms"
  handle:respond({[":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = "4", ["grpc-message"] = message})
end
"""


def lua_filter() -> Json:
    """The filter; it follows the one that extracts the model's name."""
    return {"name": LUA, "typed_config": typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _CODE})}


def deadline_metadata(limit: RouteLimit) -> Json:
    """What tells the filter the shortest deadline of a route; nothing where there is none."""
    return {LUA: {_MIN_DEADLINE: limit.min_deadline_ms}} if limit.min_deadline_ms > 0.0 else {}
