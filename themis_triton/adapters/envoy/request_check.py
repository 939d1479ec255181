"""Checks of a REST request before a server sees it: its size, and how deeply its JSON is nested."""

from __future__ import annotations

from typing import Any

from themis_triton.core.config import EnvoyConfig

Json = dict[str, Any]
MAX_DEPTH = 64
"""Arrays and objects inside each other. A tensor has a few; Triton's parser overflows its stack at many, and the server ends."""
PIECE_BYTES = 2**18
"""The filter has so much of a body at a time."""
TOO_DEEP = f"Themis: the JSON of the request is nested more than {MAX_DEPTH} levels deep"

# The body is looked at piece by piece, so that no second copy of it exists. A body with few brackets takes a plain search for them,
# another one a pass over its bytes, which LuaJIT compiles: it is several times as fast as any search for a pattern.
_CODE = """
local find, byte, min = string.find, string.byte, math.min

local function has_many(body, length, bracket, many)
  local opened = 0
  for from = 0, length - 1, PIECE do
    local text, at = body:getBytes(from, min(PIECE, length - from)), 0
    repeat
      at = find(text, bracket, at + 1, true)
      if at ~= nil then opened = opened + 1 end
      if opened > many then return true end
    until at == nil
  end
  return false
end

local function too_deep(body, length)
  local half = math.floor(MAX_DEPTH / 2)
  if not has_many(body, length, "[", half) and not has_many(body, length, "{", half) then return false end
  local depth, quoted, i = 0, false, 1
  for from = 0, length - 1, PIECE do
    local text = body:getBytes(from, min(PIECE, length - from))
    local size = #text
    while i <= size do
      local c = byte(text, i)
      if quoted then
        if c == 92 then i = i + 1 elseif c == 34 then quoted = false end
      elseif c == 34 then quoted = true
      elseif c == 91 or c == 123 then
        depth = depth + 1
        if depth > MAX_DEPTH then return true end
      elseif c == 93 or c == 125 then depth = depth - 1
      end
      i = i + 1
    end
    i = i - size
  end
  return false
end

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") ~= "POST" then return end
  local announced = headers:get("content-length")
  if announced ~= nil and (tonumber(announced) or 0) > MAX_BYTES then
    handle:respond({[":status"] = "413"}, "TOO_LARGE")
    return
  end
  local encoding = headers:get("content-encoding")
  if encoding ~= nil and encoding ~= "identity" then
    -- What is inside is not known, so it goes to one server only.
    headers:replace("x-envoy-max-retries", "0")
    return
  end
  -- Headers cannot be read any more once the body has been waited for.
  local written = headers:get("inference-header-content-length")
  local body = handle:body()
  if body == nil then return end
  local size = body:length()
  -- The proxy's own bound on what it buffers is not exact.
  if size > MAX_BYTES then
    handle:respond({[":status"] = "413"}, "TOO_LARGE")
    return
  end
  local json = written ~= nil and find(written, "^%d+$") and min(tonumber(written), size) or size
  if json > 0 and too_deep(body, json) then
    handle:respond({[":status"] = "400"}, "TOO_DEEP")
  end
end
"""


def too_large(config: EnvoyConfig) -> str:
    """The message for a body above the bound."""
    return f"Themis: the request has more than {config.max_message_bytes} bytes (envoy.max_message)"


def request_check(config: EnvoyConfig) -> Json:
    """The filter of the REST listener."""
    values = {
        "PIECE": str(PIECE_BYTES),
        "MAX_DEPTH": str(MAX_DEPTH),
        "MAX_BYTES": str(config.max_message_bytes),
        "TOO_LARGE": too_large(config),
        "TOO_DEEP": TOO_DEEP,
    }
    code = _CODE
    for name, value in values.items():
        code = code.replace(name, value)
    kind = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
    return {"name": "envoy.filters.http.lua", "typed_config": {"@type": kind, "default_source_code": {"inline_string": code.lstrip()}}}
