"""Checks of a REST request before a server sees it: its size, and how deeply its JSON is nested."""

from __future__ import annotations

from typing import Any

from themis_triton.core.config import EnvoyConfig

Json = dict[str, Any]
MAX_DEPTH = 64
"""Arrays and objects inside each other. A tensor has a few; Triton's parser overflows its stack at many, and the server ends."""
TOO_DEEP = f"Themis: the JSON of the request is nested more than {MAX_DEPTH} levels deep"

# Bodies with few brackets, which are most, take one search; others one pass over the bytes, which LuaJIT compiles.
_CODE = """
local find, byte, min = string.find, string.byte, math.min

local function too_deep(text)
  local at, opened = 0, 0
  repeat
    at = find(text, "[%[{]", at + 1)
    if at == nil then return false end
    opened = opened + 1
  until opened > MAX_DEPTH
  local depth, quoted, i, length = 0, false, 1, #text
  while i <= length do
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
  if json > 0 and too_deep(body:getBytes(0, json)) then
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
