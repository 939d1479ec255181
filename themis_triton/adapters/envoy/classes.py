"""Classes of requests under a limit: lower ones are refused while the tokens of the limit run out, so that higher ones get them.

A Lua filter keeps the same token bucket as the limit, for each worker of Envoy its own, and lets a class have tokens down to a level only:
the highest class all of them, the others less and less. What it refuses it marks, and the limit's filter answers and counts it.
"""

from __future__ import annotations

from themis_triton.adapters.envoy.clusters import Json, typed
from themis_triton.core.routes import RouteLimit

NAME = "themis.classes"
REFUSED_HEADER = "x-themis-refused-class"
"""Marks a request that its class has no token for; one that a client sends is removed."""
_KEY, _REFUSED = "class", "1"
_DAY_S = 86_400
_CODE = f"""
local buckets = {{}}
function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("{REFUSED_HEADER}")
  local limit = handle:metadata()
  local rate = limit:get("rate")
  if rate == nil then return end
  local model, burst, now = limit:get("model"), limit:get("burst"), handle:timestamp()
  local bucket = buckets[model]
  if bucket == nil then
    bucket = {{tokens = burst, at = now}}
    buckets[model] = bucket
  end
  bucket.tokens = math.min(burst, bucket.tokens + math.max(0, now - bucket.at) * rate / 1000)
  bucket.at = now
  local value = headers:get(limit:get("header"))
  local level = value ~= nil and limit:get("levels")[value] or limit:get("lowest")
  if level == 0 or bucket.tokens >= math.min(burst, 1 + burst * level / (limit:get("lowest") + 1)) then
    bucket.tokens = math.max(0, bucket.tokens - 1)
  else
    headers:add("{REFUSED_HEADER}", "{_REFUSED}")
  end
end
"""


def class_filter() -> Json:
    """The filter; it does nothing on routes without classes. It precedes that of the limits."""
    config = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _CODE})
    return {"name": NAME, "typed_config": config}


def class_metadata(model: str, limit: RouteLimit, max_tokens: int, rate_rps: float, workers: int) -> Json:
    """What tells the filter the classes of a route, highest first; nothing where there are none."""
    if not limit.classes:
        return {}
    levels = {value: level for level, value in enumerate(limit.classes)}
    share = {"rate": rate_rps / workers, "burst": max(1.0, max_tokens / workers)}
    return {NAME: {"model": model, "header": limit.class_header, "levels": levels, "lowest": len(levels), **share}}


def refused_class(limit: RouteLimit) -> Json:
    """What has the limit's filter refuse marked requests: a bucket of their own that is empty after its first token."""
    if not limit.classes:
        return {}
    marked = {"request_headers": {"header_name": REFUSED_HEADER, "descriptor_key": _KEY}}
    empty = {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": f"{_DAY_S}s"}
    return {
        "rate_limits": [{"actions": [marked]}],
        "descriptors": [{"entries": [{"key": _KEY, "value": _REFUSED}], "token_bucket": empty}],
    }
