"""Types of settings values; each carries a description of the values that it accepts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field
from pydantic.config import JsonValue
from pydantic_core import PydanticCustomError

from themis_triton.core.address import Address


@dataclass(frozen=True, slots=True)
class Allowed:
    """Description of the accepted values, for error messages, the reference and the JSON Schema."""

    words: str


class Section(BaseModel):
    """A mapping of the settings file: no unknown keys, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def one_of(*keys: str, flag: str | None = None) -> ConfigDict:
    """Model configuration whose JSON Schema requires exactly one of the keys, or the flag to be true."""
    choices: list[JsonValue] = [{"required": [key]} for key in keys]
    if flag is not None:
        choices.append({"required": [flag], "properties": {flag: {"const": True}}})
    return ConfigDict(json_schema_extra={"oneOf": choices})


def refusal(error: str | None, expected: str, fix: str) -> PydanticCustomError:
    """A validator's error with the parts of a `Problem`; `error` None: the value as written is invalid."""
    context = {"expected": expected, "fix": fix} | ({} if error is None else {"error": error})
    return PydanticCustomError("themis", "expected {expected}", context)


ADDRESS_WORDS = "host:port with a port of 1 to 65535, such as 127.0.0.1:8001 or [::1]:8001"
LISTEN_WORDS = "IP:port with a port of 1 to 65535, such as 127.0.0.1:9001 or 0.0.0.0:9001"
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MODEL_NAME_PATTERN = r"^(\.{0,2}[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]{0,252}|\.{3}[^/\x00-\x1f\x7f]{0,252})$"
MAX_NAME_BYTES = 255
"""Of a folder's name, in UTF-8."""
MODEL_NAME_WORDS = f"the name of a folder in a model repository, without '/' and control characters, of at most {MAX_NAME_BYTES} bytes"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


def parse_address(text: str) -> Address | None:
    """The address of `host:port`; None when the text is something else."""
    try:
        return Address.parse(text) if "/" not in text else None
    except ValueError:
        return None


def _check_length(name: str) -> str:
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise refusal(None, MODEL_NAME_WORDS, "rename it")
    return name


HTTPS = "https://"


def parse_web_address(text: str) -> Address | None:
    """The address of `host:port`, or of `https://host:port`, which has TLS; None when the text is something else."""
    address = parse_address(text.removeprefix(HTTPS))
    return replace(address, tls=True) if address is not None and text.startswith(HTTPS) else address


def _check_web_address(text: str) -> str:
    if parse_web_address(text) is None:
        raise refusal(None, ADDRESS_WORDS, _address_fix(text.removeprefix(HTTPS)))
    return text


def _check_address(text: str) -> str:
    if parse_address(text) is None:
        raise refusal(None, ADDRESS_WORDS, _address_fix(text))
    return text


def _check_listen(text: str) -> str:
    address = parse_address(text)
    if address is None:
        raise refusal(None, LISTEN_WORDS, _address_fix(text))
    if address.ip is None:
        host = "127.0.0.1" if address.host == "localhost" else "the IP of the interface"
        raise refusal(None, LISTEN_WORDS, f"write {host}:{address.port}; a listener needs an IP address, not a name")
    return text


def _address_fix(text: str) -> str:
    if "://" in text:
        tls = ", and for TLS set `tls: {ca: FILE}` beside it" if text.startswith(("tls:", "https:", "grpcs:")) else ""
        return f"remove the scheme: write {text.partition('://')[2].partition('/')[0]}{tls}"
    if text.isdigit():
        return f"add the host, such as 127.0.0.1:{text}"
    if ":" not in text:
        return f"add the port, such as {text}:8001"
    return "write host:port"


def is_device(text: str) -> bool:
    """Whether the text names a device."""
    return re.fullmatch(rf"(gpu|cpu):(0|[1-9]\d{{0,2}})|gpu:(GPU|MIG)-{_UUID}", text) is not None


def _check_device(text: str) -> str:
    if not is_device(text):
        uuid = re.search(rf"(GPU|MIG)-{_UUID}", text)
        number = re.search(r"\d+", text)
        named = f"{'cpu' if 'cpu' in text.lower() else 'gpu'}:{number[0] if number else 0}"
        raise refusal(None, DEVICE_WORDS, f"write {f'gpu:{uuid[0]}' if uuid else named}")
    return text


def check_distinct(devices: list[str]) -> None:
    """Raise the validator's error where a list names a device twice."""
    twice = next((device for device in devices if devices.count(device) > 1), None)
    if twice is not None:
        raise refusal(f"{twice} is named twice", "each device once", f"remove the second {twice}")


DEVICE_WORDS = "gpu:N (N is NVML's index), gpu:UUID (of a GPU or a MIG device, from `nvidia-smi -L`) or cpu:N, such as gpu:0"

Count = Annotated[int, Field(ge=1)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN), Allowed("a name of letters, digits, '-', '_' and '.'")]
ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN), AfterValidator(_check_length), Allowed(MODEL_NAME_WORDS)]
WebAddress = Annotated[str, AfterValidator(_check_web_address), Allowed(ADDRESS_WORDS)]
HostPort = Annotated[str, AfterValidator(_check_address), Allowed(ADDRESS_WORDS)]
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"), Allowed("a host name")]
Listen = Annotated[str, AfterValidator(_check_listen), Allowed(LISTEN_WORDS)]
Device = Annotated[str, AfterValidator(_check_device), Allowed(DEVICE_WORDS)]
KubernetesName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"), Allowed("a Kubernetes name: up to 63 lower-case letters, digits and '-'")
]
Quantity = Annotated[str, Field(pattern=r"^[1-9]\d*m?$"), Allowed("processors or thousandths of them, such as 2 or 500m")]
Size = Annotated[ByteSize, Allowed("a size in bytes or with a unit, such as 512MiB")]
FilePath = Annotated[Path, Field(strict=False), Allowed("a path; relative paths start at the folder of this file")]


def _repositories(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


Repositories = Annotated[
    list[FilePath],
    Field(min_length=1),
    BeforeValidator(_repositories, json_schema_input_type=list[FilePath] | FilePath),
    Allowed("a path, or a list of paths; relative paths start at the folder of this file"),
]
