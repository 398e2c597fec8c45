"""What is known of services and their files, and the answers made of it. Neither colour nor version matters here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from connectrpc.errors import ConnectErrorCode
from connectrpc.reflection._messages import POOL, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from google.protobuf.descriptor import Descriptor, FileDescriptor
    from google.protobuf.descriptor_pb2 import DescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

    from connectrpc.method import Method

    Answer = dict[str, Any]

__all__ = ["Catalogue", "Conversation"]

T = TypeVar("T")

# What pools raise for what they do not know. TypeError is that of a pool over a database which has a file and not all
# that it imports.
_UNKNOWN = (KeyError, TypeError)


class Catalogue:
    """The services that are listed, and the pools in which they and everything else are described.

    Nothing in it changes, so threads and tasks may share it.

    Args:
        services: apps, full names or descriptors, as for ``connectrpc.reflection.wsgi_reflection``.
        pool: what is searched after the pools of the services; None for protobuf's default pool.

    Raises:
        TypeError: one of ``services`` is none of these.
        ValueError: ``pool`` has no service of that name.
    """

    def __init__(self, services: Iterable[object], pool: DescriptorPool | None) -> None:
        last = descriptor_pool.Default() if pool is None else pool
        names: dict[str, None] = {}  # in place of a set: it has an order
        pools = [POOL]
        for service in services:
            for name, found_in in _described(service, last):
                names[name] = None
                if not any(found_in is known for known in (*pools, last, descriptor_pool.Default())):
                    pools.append(found_in)
        for version in VERSIONS:
            names[version.service.name] = None
        self.services = tuple(sorted(names))
        # The default pool may have other files for what the first ones describe: grpcio's packages bring them.
        self._pools = (*pools, last)

    def file(self, name: str) -> FileDescriptor | None:
        """The file of this name."""
        return self._find(lambda pool: pool.FindFileByName(name))

    def file_of_symbol(self, name: str) -> FileDescriptor | None:
        """The file that declares what has this full name, whatever it is."""
        return self._find(lambda pool: _file_of_symbol(pool, name))

    def file_of_extension(self, extended: str, number: int) -> FileDescriptor | None:
        """The file that declares the extension of this message with this number."""

        def find(pool: DescriptorPool) -> FileDescriptor:
            extension: Any = pool.FindExtensionByNumber(pool.FindMessageTypeByName(extended), number)
            file: FileDescriptor = extension.file
            return file

        return self._find(find)

    def extension_numbers(self, extended: str) -> list[int] | None:
        """The numbers of all extensions of this message; None when there is no such message."""
        numbers: set[int] = set()
        found = False
        for pool in self._pools:
            with contextlib.suppress(*_UNKNOWN):
                extensions = pool.FindAllExtensions(pool.FindMessageTypeByName(extended))
                numbers.update(extension.number for extension in extensions)
                found = True
        return sorted(numbers) if found else None

    def _find(self, find: Callable[[DescriptorPool], T]) -> T | None:
        for pool in self._pools:
            with contextlib.suppress(*_UNKNOWN):
                return find(pool)
        return None


def _described(service: object, pool: DescriptorPool) -> Iterator[tuple[str, DescriptorPool]]:
    """The full names of the services that are meant, and the pool that describes each."""
    if isinstance(service, str):
        try:
            pool.FindServiceByName(service)
        except KeyError:
            raise ValueError(f"no service {service!r} is described in the pool; is its code imported?") from None
        yield service, pool
    elif isinstance(service, ServiceDescriptor):
        yield service.full_name, service.file.pool
    else:
        methods: Iterable[Method[Any, Any]] | None = getattr(service, "methods", None)
        if methods is None:
            raise TypeError(f"{service!r} is neither an application nor the name or descriptor of a service")
        for method in methods:
            yield method.service_name, method.input.DESCRIPTOR.file.pool


def _file_of_symbol(pool: DescriptorPool, name: str) -> FileDescriptor:
    with contextlib.suppress(KeyError):
        return pool.FindFileContainingSymbol(name)
    # Not all releases of protobuf find members by that; and FindOneofByName, which would, crashes in some.
    owner, _, member = name.rpartition(".")
    with contextlib.suppress(KeyError):
        service = pool.FindServiceByName(owner)
        if member in service.methods_by_name:
            return service.file
    message = pool.FindMessageTypeByName(owner)
    if member in message.fields_by_name or member in message.oneofs_by_name:
        return message.file
    raise KeyError(name)


def _encoded(file: FileDescriptor) -> bytes:
    """A file, with the names that fields have in JSON: code for Python has none, and not all callers make them up."""
    proto = FileDescriptorProto.FromString(file.serialized_pb)
    _name_fields(proto.message_type, file.message_types_by_name)
    return proto.SerializeToString()


def _name_fields(messages: Iterable[DescriptorProto], descriptors: Mapping[str, Descriptor]) -> None:
    for message in messages:
        descriptor = descriptors[message.name]
        for field in message.field:
            known: Any = descriptor.fields_by_name[field.name]
            field.json_name = known.json_name
        _name_fields(message.nested_type, descriptor.nested_types_by_name)


class Conversation:
    """One stream of questions. It remembers which files it has sent, since callers keep them.

    Args:
        catalogue: what is known.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._sent: set[str] = set()

    def answer(self, request: Any) -> Answer:
        """The fields of the answer to a ``ServerReflectionRequest`` of either version."""
        kind = request.WhichOneof("message_request")
        answer = _ANSWERS.get(kind, Conversation._misunderstood)(self, request)
        return {"valid_host": request.host, "original_request": request, **answer}

    def _file_by_filename(self, request: Any) -> Answer:
        name = request.file_by_filename
        return self._files(self._catalogue.file(name), f"no file {name!r}")

    def _file_containing_symbol(self, request: Any) -> Answer:
        name = request.file_containing_symbol
        return self._files(self._catalogue.file_of_symbol(name), f"no file declares {name!r}")

    def _file_containing_extension(self, request: Any) -> Answer:
        wanted = request.file_containing_extension
        extended, number = wanted.containing_type, wanted.extension_number
        found = self._catalogue.file_of_extension(extended, number)
        return self._files(found, f"no file declares extension {number} of {extended!r}")

    def _all_extension_numbers_of_type(self, request: Any) -> Answer:
        name = request.all_extension_numbers_of_type
        numbers = self._catalogue.extension_numbers(name)
        if numbers is None:
            return _error(ConnectErrorCode.NOT_FOUND, f"no message {name!r}")
        return {"all_extension_numbers_response": {"base_type_name": name, "extension_number": numbers}}

    def _list_services(self, request: Any) -> Answer:  # noqa: ARG002
        return {"list_services_response": {"service": [{"name": name} for name in self._catalogue.services]}}

    def _misunderstood(self, request: Any) -> Answer:  # noqa: ARG002
        return _error(ConnectErrorCode.INVALID_ARGUMENT, "the request asks for nothing that is known")

    def _files(self, file: FileDescriptor | None, missing: str) -> Answer:
        """The file, first and in any case, and those of its dependencies that the caller does not have yet."""
        if file is None:
            return _error(ConnectErrorCode.NOT_FOUND, missing)
        found = [file]
        self._sent.add(file.name)
        for known in found:  # which grows meanwhile
            for dependency in known.dependencies:
                if dependency.name not in self._sent:
                    self._sent.add(dependency.name)
                    found.append(dependency)
        return {"file_descriptor_response": {"file_descriptor_proto": [_encoded(known) for known in found]}}


_ANSWERS: dict[str | None, Callable[[Conversation, Any], Answer]] = {
    "file_by_filename": Conversation._file_by_filename,
    "file_containing_symbol": Conversation._file_containing_symbol,
    "file_containing_extension": Conversation._file_containing_extension,
    "all_extension_numbers_of_type": Conversation._all_extension_numbers_of_type,
    "list_services": Conversation._list_services,
}


def _error(code: ConnectErrorCode, message: str) -> Answer:
    return {"error_response": {"error_code": code.grpc_number, "error_message": message}}
