"""The messages of Envoy's API that Themis sends and reads, without generated code: their fields are in `messages.txt`.

That file has, by package, the fields that are rendered, by number, name (`*`: repeated, `{}`: a map from strings) and type, as the API
publishes them: https://www.envoyproxy.io/docs/envoy/latest/api-v3/api.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from graphlib import TopologicalSorter
from importlib.resources import files
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, json_format, message_factory, struct_pb2, wrappers_pb2

from themis_triton.core.errors import ServerError

Json = dict[str, Any]
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "double": _FIELD.TYPE_DOUBLE,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint32": _FIELD.TYPE_UINT32,
    "bool": _FIELD.TYPE_BOOL,
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
}
_KNOWN = (any_pb2, duration_pb2, struct_pb2, wrappers_pb2)


def packed(resource: Mapping[str, Any]) -> bytes:
    """A rendered resource, with its `@type`, as binary protobuf: what an `Any` of that type holds.

    Raises:
        ServerError: it has a field that `messages.txt` lacks.
    """
    content = {key: value for key, value in resource.items() if key != "@type"}
    try:
        message = json_format.ParseDict(content, message_class(type_name(resource))(), descriptor_pool=_pool())
    except (json_format.ParseError, KeyError) as error:
        raise ServerError(f"Envoy's resource {resource.get('name', '')!r} cannot be sent over xDS: {error}") from error
    return bytes(message.SerializeToString(deterministic=True))


def type_name(resource: Mapping[str, Any]) -> str:
    """The full name of a rendered resource's message."""
    return str(resource["@type"]).rpartition("/")[2]


@cache
def message_class(name: str) -> Any:  # noqa: ANN401 - protobuf has no types
    """The class of a message by its full name. KeyError for one that `messages.txt` lacks."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


@cache
def _pool() -> Any:  # noqa: ANN401 - as above
    pool = descriptor_pool.DescriptorPool()
    for module in _KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    packages = _packages(files(__package__).joinpath("messages.txt").read_text(encoding="utf-8"))
    needed = {name: _needs(file, packages) for name, file in packages.items()}
    for name in TopologicalSorter(needed).static_order():
        file = packages[name]
        file.dependency.extend([module.DESCRIPTOR.name for module in _KNOWN] + [packages[each].name for each in sorted(needed[name])])
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _packages(text: str) -> dict[str, Any]:
    """A file for each package. In proto2 fields are sent whenever they are set, also with the value that proto3 leaves out."""
    packages: dict[str, Any] = {}
    file: Any = None
    holder: Any = None
    for line in text.splitlines():
        first, name, *rest = line.split()
        if first == "package":
            file = packages[name] = descriptor_pb2.FileDescriptorProto(name=f"themis/{name}.proto", package=name, syntax="proto2")
        elif first == "message":
            holder = _nested(file, name)
        elif first == "enum":
            outer, _, own = name.rpartition(".")
            holder = (_nested(file, outer) if outer else file).enum_type.add(name=own)
        elif rest:
            _add_field(file.package, holder, int(first), name, rest[0])
        else:
            holder.value.add(name=name, number=int(first))
    return packages


def _nested(file: Any, path: str) -> Any:  # noqa: ANN401 - as above
    """The message of that path in a file, made where it is not there yet."""
    *outer, own = path.split(".")
    holder = _nested(file, ".".join(outer)) if outer else None
    siblings = holder.nested_type if holder is not None else file.message_type
    return next((each for each in siblings if each.name == own), None) or siblings.add(name=own)


def _add_field(package: str, message: Any, number: int, name: str, kind: str) -> None:  # noqa: ANN401 - as above
    repeated = name.endswith(("*", "{}"))
    plain = name.rstrip("*{}")
    field = message.field.add(name=plain, number=number, label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL)
    if not name.endswith("{}"):
        _set_type(field, package, kind)
        return
    entry = message.nested_type.add(name="".join(map(str.title, plain.split("_"))) + "Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    _set_type(entry.field.add(name="value", number=2, label=_FIELD.LABEL_OPTIONAL), package, kind)
    field.type, field.type_name = _FIELD.TYPE_MESSAGE, entry.name


def _set_type(field: Any, package: str, kind: str) -> None:  # noqa: ANN401 - as above
    """A scalar, or a message or an enum: which of them its name is looked up for when the file is added."""
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type_name = f".{kind}" if kind[0].islower() else f".{package}.{kind}"


def _needs(file: Any, packages: Mapping[str, Any]) -> set[str]:  # noqa: ANN401 - as above
    """The other packages to which the fields of a file refer."""
    messages, names = list(file.message_type), set[str]()
    for message in messages:
        messages.extend(message.nested_type)
        names.update(field.type_name for field in message.field)
    return {_package_of(name) for name in names} & packages.keys() - {file.package}


def _package_of(type_name: str) -> str:
    """The package of `.some.package.Message.Inner`: names of messages begin with a capital."""
    return ".".join(part for part in type_name.split(".") if part[:1].islower())
