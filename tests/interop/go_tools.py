"""Calls our services with grpcurl and ``buf curl``, as people do who look at a server they know nothing of."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["buf_curl", "buf_curl_http1", "grpcurl"]

HERE = Path(__file__).parent
PROTO = HERE.parent / "integration" / "integration.proto"
BUF = Path(sys.executable).parent / "buf"

CALL_SECONDS = 20

PROBE = "integration.v1.ProbeService"
OTHER = "integration.v1.OtherService"
HEALTH = "grpc.health.v1.Health"
SERVICES = [HEALTH, "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", OTHER, PROBE]
METHODS = ["Chat", "Count", "Echo", "Look", "Missing", "Notes", "Sum"]
"""Of PROBE."""

ABORTED, NOT_FOUND, UNIMPLEMENTED, DEADLINE_EXCEEDED = 10, 5, 12, 4


class Answer(NamedTuple):
    """How a call of a tool has ended."""

    status: int
    output: str
    complaints: str

    def messages(self) -> list[Any]:
        """The messages that it has printed, one after the other."""
        assert self.status == 0, self
        decoder, messages, rest = json.JSONDecoder(), [], self.output.strip()
        while rest:
            message, end = decoder.raw_decode(rest)
            messages.append(message)
            rest = rest[end:].lstrip()
        return messages

    def lines(self) -> list[str]:
        assert self.status == 0, self
        return self.output.splitlines()


def _run(*command: str) -> Answer:
    done = subprocess.run(command, check=False, timeout=CALL_SECONDS, capture_output=True, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


def _run_cases(title: str, cases: dict[str, Callable[[], None]]) -> bool:
    """Run them, and print a line each; whether none has failed."""
    failed = 0
    for name, run in cases.items():
        began = time.monotonic()
        try:
            run()
        except (Exception, subprocess.TimeoutExpired):
            failed += 1
            print(f"FAIL  {title}: {name}: {traceback.format_exc(limit=-2)}")
        else:
            print(f"ok    {title}: {name} ({(time.monotonic() - began) * 1000:.0f} ms)")
    print(f"{len(cases)} cases, {failed} failed", flush=True)
    return failed == 0


def _documents(messages: tuple[object, ...]) -> str:
    return "\n".join(map(json.dumps, messages))


def _field(message: dict[str, Any], name: str) -> Any:
    """A message's field. grpcurl prints ProtoJSON's name of it only where the descriptor holds that."""
    return next(value for key, value in message.items() if key.lower() == name.replace("_", "") or key == name)


class _Grpcurl:
    """Runs grpcurl, which learns from the server itself what can be called."""

    def __init__(self, program: Path, url: str) -> None:
        self.program = program
        self.address = url.removeprefix("http://")

    def __call__(self, *arguments: str, options: tuple[str, ...] = ()) -> Answer:
        return _run(*self.command(*arguments, options=options))

    def command(self, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
        return [str(self.program), "-plaintext", *options, self.address, *arguments]

    def call(self, method: str, *messages: object, options: tuple[str, ...] = ()) -> Answer:
        return self(method, options=("-d", _documents(messages), *options))


def grpcurl(program: Path, url: str) -> bool:
    """Whether all cases pass with this server, which has health and reflection. Prints a line each."""
    tool = _Grpcurl(program, url)

    def listing() -> None:
        assert tool("list").lines() == SERVICES
        assert tool("list", PROBE).lines() == [f"{PROBE}.{method}" for method in METHODS]

    def describing() -> None:
        service = tool("describe", PROBE).output
        assert (
            "rpc Chat ( stream .integration.v1.ChatRequest ) returns ( stream .integration.v1.ChatResponse )" in service
        )
        assert "idempotency_level = NO_SIDE_EFFECTS" in service
        message = tool("describe", ".integration.v1.EchoRequest").output
        assert "map<string, int32> counts = 7;" in message
        assert ".google.protobuf.Any any = 8;" in message
        assert "MOOD_GOOD = 1;" in tool("describe", "integration.v1.Mood").output
        assert "is a field" in tool("describe", "integration.v1.EchoRequest.child").output
        assert "int64 seconds = 1;" in tool("describe", "google.protobuf.Timestamp").output
        assert "rpc Watch" in tool("describe", HEALTH).output
        assert "rpc ServerReflectionInfo" in tool("describe", "grpc.reflection.v1alpha.ServerReflection").output
        assert "not found" in tool("describe", "integration.v1.Nothing").complaints.lower()

    def older_reflection() -> None:
        path = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        requests = ({"list_services": ""}, {"file_containing_symbol": "integration.v1.Nothing"})
        services, nothing = tool.call(path, *requests).messages()
        assert [service["name"] for service in _field(services, "list_services_response")["service"]] == SERVICES
        assert _field(_field(nothing, "error_response"), "error_code") == NOT_FOUND

    def all_kinds() -> None:
        request = {"text": "\u00e4", "number": "-5", "when": "2001-02-03T04:05:06Z", "any": {"@type": ANY, "text": "x"}}
        (echoed,) = tool.call(f"{PROBE}/Echo", request).messages()
        assert echoed["request"] == request
        assert tool.call(f"{PROBE}/Count", {"up_to": 3}).messages() == [{"number": 1}, {"number": 2}, {"number": 3}]
        (summed,) = tool.call(f"{PROBE}/Sum", {"number": 2}, {"number": 3}).messages()
        assert (summed["sum"], summed["messages"]) == ("5", 2)
        assert tool.call(f"{PROBE}/Chat", {"text": "a"}, {"text": "b"}).messages() == [{"text": "a"}, {"text": "b"}]
        assert tool.call(f"{OTHER}/Ping").messages() == [{}]

    def health() -> None:
        assert tool.call(f"{HEALTH}/Check").messages() == [{"status": "SERVING"}]
        assert tool.call(f"{HEALTH}/Check", {"service": PROBE}).messages() == [{"status": "SERVING"}]
        unknown = tool.call(f"{HEALTH}/Check", {"service": "unknown"})
        assert unknown.status == 64 + NOT_FOUND
        assert "Code: NotFound" in unknown.complaints
        (listed,) = tool.call(f"{HEALTH}/List").messages()
        assert set(listed["statuses"]) == {"", PROBE, OTHER}

    def watching() -> None:
        tool.call(f"{OTHER}/Ping", {"text": "NOT_SERVING"}).messages()
        watch = tool.command(f"{HEALTH}/Watch", options=("-max-time", "15", "-d", json.dumps({"service": OTHER})))
        with subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watching:
            assert watching.stdout is not None
            try:
                lines = (line.strip() for line in watching.stdout)
                assert next(line for line in lines if "status" in line) == '"status": "NOT_SERVING"'
                tool.call(f"{OTHER}/Ping", {"text": "SERVING"}).messages()
                assert next(line for line in lines if "status" in line) == '"status": "SERVING"'
            finally:
                watching.kill()
        left = tool.call(f"{HEALTH}/Watch", {"service": "unknown"}, options=("-max-time", "0.5"))
        assert left.status == 64 + DEADLINE_EXCEEDED
        assert json.loads(left.output) == {"status": "SERVICE_UNKNOWN"}

    def errors() -> None:
        refused = tool.call(f"{PROBE}/Echo", {"misdeed": "error with metadata"})
        assert refused.status == 64 + ABORTED
        assert "Code: Aborted" in refused.complaints
        assert "Message: no" in refused.complaints
        assert f'"@type": "{ANY}"' in refused.complaints
        assert '"text": "detail"' in refused.complaints
        broken = tool.call(f"{PROBE}/Count", {"up_to": 2, "misdeed": "error last"})
        assert broken.status == 64 + NOT_FOUND
        assert broken._replace(status=0).messages() == [{"number": 1}, {"number": 2}]
        assert tool.call(f"{PROBE}/Missing").status == 64 + UNIMPLEMENTED

    def metadata() -> None:
        headers = ("-v", "-H", "x-text: a", "-H", "x-mirror-bin: AAH+/w")
        answer = tool.call(f"{PROBE}/Echo", {"misdeed": "metadata"}, options=headers)
        assert answer.status == 0
        received, _, trailers = answer.output.partition("Response contents:")
        body, _, trailers = trailers.partition("Response trailers received:")
        assert all(line in received for line in ("x-head: 1", "x-head: 2", "x-mirror-bin: AAH+/w=="))
        assert all(line in trailers for line in ("x-tail: 3", "x-tail: 4", "x-mirror-bin: AAH+/w=="))
        seen = {header["name"]: header["values"] for header in json.loads(body)["headers"]}
        assert seen["x-text"] == ["a"]

    def deadline() -> None:
        late = tool.call(f"{PROBE}/Echo", {"delay_ms": 5000}, options=("-max-time", "0.5"))
        assert late.status == 64 + DEADLINE_EXCEEDED

    def without_reflection() -> None:
        schema = ("-use-reflection=false", "-import-path", str(PROTO.parent), "-proto", PROTO.name)
        assert tool.call(f"{OTHER}/Ping", {"text": "a"}, options=schema).messages() == [{"text": "a"}]

    return _run_cases(
        "grpcurl",
        {
            "list": listing,
            "describe": describing,
            "reflection v1alpha": older_reflection,
            "all kinds": all_kinds,
            "health": health,
            "health, watched": watching,
            "errors": errors,
            "metadata": metadata,
            "a deadline": deadline,
            "with the proto instead of reflection": without_reflection,
        },
    )


ANY = "type.googleapis.com/integration.v1.PingRequest"


def buf_curl(url: str) -> bool:
    """Whether all cases pass with this server, which has health, reflection and HTTP/2. Prints a line each."""

    def curl(*arguments: str) -> Answer:
        return _run(str(BUF), "curl", "--http2-prior-knowledge", *arguments)

    def listing(reflection: str) -> None:
        options = ("--reflect-protocol", reflection)
        assert curl(*options, "--list-services", url).lines() == SERVICES
        methods = curl(*options, "--list-methods", url).lines()
        assert [method for method in methods if method.startswith(PROBE)] == [f"{PROBE}/{each}" for each in METHODS]

    cases: dict[str, Callable[[], None]] = {}
    for reflection in ("grpc-v1", "grpc-v1alpha"):
        cases[f"listing by {reflection}"] = functools.partial(listing, reflection)
    for protocol in ("connect", "grpc", "grpcweb"):

        def call(method: str, *messages: object, protocol: str = protocol) -> Answer:
            return curl("--protocol", protocol, "-d", _documents(messages), f"{url}/{method}")

        cases |= _buf_cases(protocol, call, full_duplex=True)

        def health(call: Callable[..., Answer] = call) -> None:
            assert call(f"{HEALTH}/Check", {"service": PROBE}).messages() == [{"status": "SERVING"}]
            assert json.loads(call(f"{HEALTH}/Check", {"service": "unknown"}).complaints)["code"] == "not_found"

        cases[f"{protocol}: health"] = health
    return _run_cases("buf curl", cases)


def buf_curl_http1(url: str) -> bool:
    """The same without HTTP/2, and so without reflection: buf has it over HTTP/2 only."""
    cases: dict[str, Callable[[], None]] = {}
    for protocol in ("connect", "grpcweb"):

        def call(method: str, *messages: object, protocol: str = protocol) -> Answer:
            schema = ("--schema", str(PROTO), "--protocol", protocol)
            return _run(str(BUF), "curl", *schema, "-d", _documents(messages), f"{url}/{method}")

        cases |= _buf_cases(protocol, call, full_duplex=False)
    return _run_cases("buf curl, HTTP/1.1", cases)


def _buf_cases(protocol: str, call: Callable[..., Answer], *, full_duplex: bool) -> dict[str, Callable[[], None]]:
    def all_kinds() -> None:
        (echoed,) = call(f"{PROBE}/Echo", {"text": "\u00e4", "number": "-5"}).messages()
        assert echoed["request"] == {"text": "\u00e4", "number": "-5"}
        assert call(f"{PROBE}/Count", {"up_to": 3}).messages() == [{"number": 1}, {"number": 2}, {"number": 3}]
        (summed,) = call(f"{PROBE}/Sum", {"number": 2}, {"number": 3}).messages()
        assert (summed["sum"], summed["messages"]) == ("5", 2)
        if full_duplex:
            assert call(f"{PROBE}/Chat", {"text": "a"}, {"text": "b"}).messages() == [{"text": "a"}, {"text": "b"}]

    def errors() -> None:
        refused = call(f"{PROBE}/Echo", {"misdeed": "error with metadata"})
        assert refused.status == ABORTED << 3
        error = json.loads(refused.complaints)
        assert (error["code"], error["message"]) == ("aborted", "no")
        assert [detail["type"] for detail in error["details"]] == ["integration.v1.PingRequest"]
        broken = call(f"{PROBE}/Count", {"up_to": 2, "misdeed": "error last"})
        assert broken.status == NOT_FOUND << 3
        assert broken._replace(status=0).messages() == [{"number": 1}, {"number": 2}]
        assert call(f"{PROBE}/Missing").status == UNIMPLEMENTED << 3

    return {f"{protocol}: all kinds": all_kinds, f"{protocol}: errors": errors}
