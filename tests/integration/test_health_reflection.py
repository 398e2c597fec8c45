"""Health and reflection on real servers, asked by those whom they are there for: grpcio's stubs and buf."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # type: ignore[import-untyped]
    ProtoReflectionDescriptorDatabase,
)

from helpers import settles
from rawhttp import HOST
from servers import run_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

BUF = str(Path(sys.executable).with_name("buf"))
PATIENCE = 20.0

NAME = "integration.v1.ProbeService"
REFLECTION = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
SERVICES = sorted([NAME, "integration.v1.OtherService", "grpc.health.v1.Health", *REFLECTION])
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)

pytestmark = pytest.mark.usefixtures("limit")


def get(server: Server, path: str) -> bytes:
    """What the server answers to a GET over HTTP/1.1."""
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()


def set_status(server: Server, service: str, status: int) -> None:
    assert get(server, f"/set?service={service}&status={status}") == b"set"


@pytest.fixture(scope="module")
def http2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An ASGI server that speaks HTTP/2, and sends trailers."""
    directory = tmp_path_factory.mktemp("health")
    options = ["--http", "zttp", "--http2"]
    with run_server("uvicorn-httptools", directory, app="service_health:asgi", options=options) as server:
        yield server


@pytest.fixture(scope="module")
def gthread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A WSGI server."""
    directory = tmp_path_factory.mktemp("health")
    with run_server("gunicorn-gthread", directory, app="service_health:wsgi") as server:
        yield server


@pytest.fixture
def channel(http2: Server) -> Iterator[Any]:
    with grpc.insecure_channel(f"{HOST}:{http2.port}") as channel:
        yield channel


# Health, by grpcio


def request(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


def test_check_and_list(http2: Server, channel: Any) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(request(""), timeout=PATIENCE).status == SERVING
    assert stub.Check(request(NAME), timeout=PATIENCE).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(request("nobody.Knows"), timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    set_status(http2, "check.Me", NOT_SERVING)
    assert stub.Check(request("check.Me"), timeout=PATIENCE).status == NOT_SERVING
    statuses = stub.List(health_pb2.HealthListRequest(), timeout=PATIENCE).statuses
    assert {"", NAME, "check.Me"} <= set(statuses)
    assert statuses["check.Me"].status == NOT_SERVING
    assert get(http2, "/shutdown")
    assert stub.Check(request(""), timeout=PATIENCE).status == NOT_SERVING
    assert get(http2, "/resume")
    assert stub.Check(request(""), timeout=PATIENCE).status == SERVING


def test_watch(http2: Server, channel: Any) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watching = stub.Watch(request("watch.Me"), timeout=PATIENCE)
    assert next(watching).status == SERVICE_UNKNOWN
    for status in (SERVING, NOT_SERVING, UNKNOWN, SERVING):
        set_status(http2, "watch.Me", status)
        set_status(http2, "watch.Me", status)
        assert next(watching).status == status
    assert get(http2, "/shutdown")
    assert next(watching).status == NOT_SERVING
    assert get(http2, "/resume")
    assert next(watching).status == SERVING
    watching.cancel()
    assert settles(lambda: get(http2, "/watchers") == b"0", PATIENCE)


def test_a_watch_ends_at_its_deadline(http2: Server, channel: Any) -> None:
    watching = health_pb2_grpc.HealthStub(channel).Watch(request(""), timeout=0.5)
    assert next(watching).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        next(watching)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert settles(lambda: get(http2, "/watchers") == b"0", PATIENCE)


def test_many_watchers(http2: Server, channel: Any) -> None:
    """They hear of a change at once, and leave nothing behind."""
    stub = health_pb2_grpc.HealthStub(channel)
    watchers = [stub.Watch(request("watch.Many"), timeout=PATIENCE) for _ in range(50)]
    assert {next(watcher).status for watcher in watchers} == {SERVICE_UNKNOWN}
    assert get(http2, "/watchers") == b"50"
    set_status(http2, "watch.Many", SERVING)
    assert {next(watcher).status for watcher in watchers} == {SERVING}
    for watcher in watchers:
        watcher.cancel()
    assert settles(lambda: get(http2, "/watchers") == b"0", PATIENCE)


def refused(call: Any) -> bool:
    """Whether a call finds no server that serves."""
    try:
        call(b"", timeout=PATIENCE)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def test_a_channel_that_checks_health_by_itself(http2: Server) -> None:
    """What the protocol is there for: gRPC's clients call a server that serves, and no other."""
    set_status(http2, "call.Me", NOT_SERVING)
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": "call.Me"}}
    options = [("grpc.service_config", json.dumps(config))]
    with grpc.insecure_channel(f"{HOST}:{http2.port}", options) as channel:
        echo = channel.unary_unary(f"/{NAME}/Echo")
        assert refused(echo)
        set_status(http2, "call.Me", SERVING)
        assert echo(b"", timeout=PATIENCE, wait_for_ready=True)
        set_status(http2, "call.Me", NOT_SERVING)
        assert settles(lambda: refused(echo), PATIENCE)
    assert settles(lambda: get(http2, "/watchers") == b"0", PATIENCE)


# Reflection, by grpcio


def test_grpcios_database(channel: Any) -> None:
    """A client with no generated code at all finds a service, its messages, and calls it."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == SERVICES
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName(NAME)
    echo = service.methods_by_name["Echo"]
    request_class: Any = message_factory.GetMessageClass(echo.input_type)
    response_class: Any = message_factory.GetMessageClass(echo.output_type)
    call = channel.unary_unary(f"/{NAME}/Echo", request_class.SerializeToString, response_class.FromString)
    response = call(request_class(text="hello", when={"seconds": 5}), timeout=PATIENCE)
    assert response.request.text == "hello"
    assert response.request.when.seconds == 5
    assert pool.FindMessageTypeByName("grpc.health.v1.HealthListResponse").fields_by_name["statuses"].number == 1
    assert pool.FindEnumTypeByName("integration.v1.Mood").values_by_name["MOOD_GOOD"].number == 1
    with pytest.raises(KeyError):
        pool.FindMessageTypeByName("integration.v1.Nothing")
    assert list(database.FindAllExtensionNumbers("integration.v1.EchoRequest")) == []


def test_a_conversation_with_grpcios_stub(channel: Any) -> None:
    """Each answer is there before the next question is asked."""
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{NAME}.Chat"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="nothing.proto"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="google.protobuf.Any"),
    ]
    answered = threading.Semaphore(1)

    def questions() -> Iterator[Any]:
        for question in asked:
            assert answered.acquire(timeout=PATIENCE)
            yield question

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answers = []
    for answer in stub.ServerReflectionInfo(questions(), timeout=PATIENCE):
        answers.append(answer)
        answered.release()
    listed, chat, nothing, well_known = answers
    assert [service.name for service in listed.list_services_response.service] == SERVICES
    assert len(chat.file_descriptor_response.file_descriptor_proto) == 5
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert len(well_known.file_descriptor_response.file_descriptor_proto) == 1


# By buf


def buf(server: Server, path: str, *options: str) -> str:
    """What ``buf curl`` prints, having learnt all that it needs from reflection."""
    process = subprocess.run(
        [BUF, "curl", "--http2-prior-knowledge", *options, f"{server.url}{path}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
@pytest.mark.parametrize("protocol", ["grpc", "grpcweb", "connect"])
def test_buf(http2: Server, protocol: str, reflection: str) -> None:
    options = ("--protocol", protocol, "--reflect-protocol", reflection)
    answer = buf(http2, f"/{NAME}/Echo", *options, "-d", '{"text": "hello", "mood": "MOOD_GOOD"}')
    assert json.loads(answer)["request"] == {"text": "hello", "mood": "MOOD_GOOD"}
    assert buf(http2, "", *options, "--list-services").split() == SERVICES


def test_buf_describes_and_calls_health(http2: Server) -> None:
    methods = buf(http2, "", "--list-methods").split()
    assert {f"{NAME}/Chat", "grpc.health.v1.Health/Watch", f"{REFLECTION[0]}/ServerReflectionInfo"} <= set(methods)
    answer = buf(http2, "/grpc.health.v1.Health/Check", "--protocol", "grpc", "-d", json.dumps({"service": NAME}))
    assert json.loads(answer) == {"status": "SERVING"}


# On a WSGI server, whose callers speak HTTP/1.1: buf wants HTTP/2 for reflection


def post(server: Server, path: str, body: bytes, content_type: str) -> tuple[http.client.HTTPConnection, Any]:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE)
    connection.request("POST", path, body, {"content-type": content_type})
    return connection, connection.getresponse()


def envelope(response: Any) -> tuple[int, Any]:
    """The flags and the JSON of the next message of a stream."""
    flags, *length = response.read(5)
    return flags, json.loads(response.read(int.from_bytes(length, "big")))


def question(value: dict[str, Any]) -> bytes:
    payload = json.dumps(value).encode()
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def test_reflection_over_http_1(gthread: Server) -> None:
    body = question({"listServices": "*"}) + question({"fileContainingSymbol": NAME})
    path = f"/{REFLECTION[0]}/ServerReflectionInfo"
    connection, response = post(gthread, path, body, "application/connect+json")
    with contextlib.closing(connection):
        _, listed = envelope(response)
        assert [service["name"] for service in listed["listServicesResponse"]["service"]] == SERVICES
        _, found = envelope(response)
        assert len(found["fileDescriptorResponse"]["fileDescriptorProto"]) == 5
        assert envelope(response) == (2, {})


def test_health_over_http_1(gthread: Server) -> None:
    connection, response = post(gthread, "/grpc.health.v1.Health/Check", b"{}", "application/json")
    with contextlib.closing(connection):
        assert json.load(response) == {"status": "SERVING"}
    connection, response = post(gthread, "/grpc.health.v1.Health/Check", b'{"service":"n"}', "application/json")
    with contextlib.closing(connection):
        assert (response.status, json.load(response)["code"]) == (404, "not_found")


def test_watching_a_wsgi_server(gthread: Server) -> None:
    """Changes come at once; who leaves gives the thread back; and others are served meanwhile."""
    path, body = "/grpc.health.v1.Health/Watch", question({"service": "watch.Me"})
    with contextlib.ExitStack() as stack:
        responses = []
        for _ in range(3):
            connection, response = post(gthread, path, body, "application/connect+json")
            stack.callback(connection.close)
            responses.append(response)
            assert envelope(response) == (0, {"status": "SERVICE_UNKNOWN"})
        with ThreadPoolExecutor(1) as pool:
            pool.submit(set_status, gthread, "watch.Me", SERVING).result(PATIENCE)
        for response in responses:
            while (status := envelope(response)[1]["status"]) != "SERVING":
                assert status == "SERVICE_UNKNOWN"  # which is repeated now and then, for those who have left
        connection, response = post(gthread, path, body, "application/connect+json")
        with contextlib.closing(connection):
            flags, end = envelope(response)
            assert (flags, end["error"]["code"]) == (2, "resource_exhausted")
    assert settles(lambda: get(gthread, "/watchers") == b"0", PATIENCE)
    connection, response = post(gthread, path, body, "application/connect+json")
    with contextlib.closing(connection):
        assert envelope(response) == (0, {"status": "SERVING"})
