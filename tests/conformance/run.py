"""Runs the official conformance suite against our clients and servers.

    python tests/conformance/run.py [name ...]

The names are those in RUNS, such as client-sync or server-gunicorn; without any, all of them run. Fails when a case
fails, and when a run has not as many cases as it should.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from prepare import GEN, HERE, RUNNER, prepare

# Far beyond what a run takes; only a program that hangs gets here.
LIMIT_SECONDS = 600

# How many cases there are for the features in the configuration files. A run that has shrunk must not pass.
CLIENT_CASES = 3362
HTTP2_CLIENT_CASES = 6724  # and HTTP/1.1, without trailers and full duplex
DUPLEX_CLIENT_CASES = 8978  # with both
HTTP3_CLIENT_CASES = 10767  # and HTTP/1.1 and 2
SERVER_CASES = 2724
HTTP2_SERVER_CASES = 7288  # and HTTP/1.1
HTTP3_SERVER_CASES = 8810  # and HTTP/1.1 and 2


class Flake(NamedTuple):
    """Cases that fail now and then by no fault of ours, and a pattern for the one complaint that is let pass."""

    pattern: str
    complaint: str


# The runner's client gives up at its deadline, as it should, and the case has passed by then. But if that moment falls
# between the head and the body of the answer that the deadline has passed, it complains of the half that it has of the
# body (examineConnectError in its wire_details.go). It can only fall there when a server writes the two one after the
# other, and a bare ASGI app on such servers fails too: torn_answer.py beside this file shows it. Our apps answer a few
# milliseconds after the deadline, so it takes a stall of the client as well.
TORN_ANSWER = Flake("Timeouts/**/unary", "connect error JSON: unexpected end of JSON input")


# The runner's gRPC server begins its answer with the first request message. Go's HTTP/1.1 server then reads the rest of
# the request by itself and closes it, and what the service was about to read is lost when it is the slower of the two.
# A bare socket has one call in a hundred lost, and a few cut short: closed_body.py beside this file shows it.
_LOST = "http: invalid Read on closed Body"
CLOSED_BODY = Flake(
    "**/(grpc server impl)/bidi-stream/half-duplex/**",
    # The error that came in place of the answer, and what follows from that; or an answer to half of the request.
    rf'(?=(.|\n)*{_LOST})(actual error \{{code: 14 \(unavailable\), message: "{_LOST}"\}} does not match .*\n?'
    rf'|received an unexpected error:\n?|code:CODE_UNAVAILABLE +message:"{_LOST}"\n?'
    r"|expecting \d+ response messages but instead got \d+\n?|actual error contain 0 details; expecting \d+\n?)+"
    r"|expecting \d+ request messages to be described but instead got \d+",
)


class Run(NamedTuple):
    """One program that is judged: what the runner has to know of it, and how many cases there are for it."""

    mode: str
    config: str
    program: list[str]
    cases: int
    flake: Flake | None = None


def client(mode: str, flake: Flake | None = None) -> Run:
    return Run("client", "config_client.yaml", ["client.py", "--mode", mode], CLIENT_CASES, flake)


def httpx_client(mode: str) -> Run:
    return Run("client", "config_client_httpx.yaml", ["client.py", "--mode", mode], HTTP2_CLIENT_CASES, CLOSED_BODY)


def pycurl_client(mode: str) -> Run:
    return Run("client", "config_client_http2.yaml", ["client.py", "--mode", mode], DUPLEX_CLIENT_CASES, CLOSED_BODY)


def pyqwest_client(mode: str) -> Run:
    return Run("client", "config_client_http3.yaml", ["client.py", "--mode", mode], HTTP3_CLIENT_CASES, CLOSED_BODY)


def server(name: str, flake: Flake | None = None) -> Run:
    return Run("server", "config_server.yaml", ["server.py", "--server", name], SERVER_CASES, flake)


def http2_server(name: str, flake: Flake | None = None) -> Run:
    return Run("server", "config_server_http2.yaml", ["server.py", "--server", name], HTTP2_SERVER_CASES, flake)


def http3_server(name: str, flake: Flake | None = None) -> Run:
    return Run("server", "config_server_http3.yaml", ["server.py", "--server", name], HTTP3_SERVER_CASES, flake)


RUNS = {
    "client-sync": client("sync", CLOSED_BODY),
    "client-async": client("async", CLOSED_BODY),
    "client-sync-httpx": httpx_client("sync-httpx"),
    "client-async-httpx": httpx_client("async-httpx"),
    "client-sync-pyqwest": pyqwest_client("sync-pyqwest"),
    "client-async-pyqwest": pyqwest_client("async-pyqwest"),
    "client-sync-pycurl": pycurl_client("sync-pycurl"),
    "client-async-pycurl": pycurl_client("async-pycurl"),
    "server-gunicorn": server("gunicorn"),
    "server-granian": server("granian"),
    "server-uvicorn-httptools": server("uvicorn-httptools", TORN_ANSWER),
    "server-uvicorn-h11": server("uvicorn-h11", TORN_ANSWER),
    "server-granian-asgi": server("granian-asgi"),
    "server-hypercorn": server("hypercorn", TORN_ANSWER),
    "server-gunicorn-asgi": server("gunicorn-asgi"),
    "server-uvicorn-http2": http2_server("uvicorn-http2", TORN_ANSWER),
    "server-gunicorn-asgi-http2": http2_server("gunicorn-asgi-http2", TORN_ANSWER),
    "server-pyvoy": http3_server("pyvoy"),
    "server-pyvoy-asgi": http3_server("pyvoy-asgi"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(RUNS)}; default: all")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RUNS)
    if unknown:
        parser.error(f"no such run: {', '.join(sorted(unknown))}")

    # As an exception, so that what runs is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("conformance: terminated"))

    prepare()
    failed = [name for name in arguments.names or RUNS if not passes(name, RUNS[name])]
    if failed:
        raise SystemExit(f"conformance: failed: {', '.join(failed)}")


def passes(name: str, run: Run) -> bool:
    """Let the runner judge, and print its verdict: in full when anything failed."""
    program, *options = run.program
    command = [str(RUNNER), "--mode", run.mode, "--conf", str(HERE / run.config)]
    if run.flake is not None:
        command += ["--known-flaky", run.flake.pattern]
    command += ["--", sys.executable, str(HERE / program), *options]
    start = time.monotonic()
    report, status = judge(command)
    seconds = time.monotonic() - start

    cases, passed = totals(report)
    flaked = complaints(report)
    ok = (
        status == 0
        and cases == run.cases == passed + len(flaked)
        and all(run.flake is not None and re.fullmatch(run.flake.complaint, complaint) for complaint in flaked)
    )
    verdict = "ok" if ok else "FAILED"
    flakes = f", {len(flaked)} flaked" if flaked else ""
    print(
        f"{name}: {verdict}: {passed} of {cases} cases passed{flakes}, {run.cases} expected ({seconds:.0f} s)",
        flush=True,
    )
    if flaked or not ok:
        print(report, flush=True)
    return ok


def judge(command: list[str]) -> tuple[str, int]:
    """What the runner reports, and its exit status."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(GEN), os.environ.get("PYTHONPATH")])),
    }
    # In a process group of its own, so that nothing of it is left behind when we stop it.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        report, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the runner did not end within {LIMIT_SECONDS} s", 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    return report, process.returncode


def totals(report: str) -> tuple[int, int]:
    """How many cases there were, and how many of them passed."""
    found = re.search(r"^Total cases: (\d+)\n(\d+) passed, \d+ failed", report, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def complaints(report: str) -> list[str]:
    """What the runner says of each case that was known to be flaky and failed."""
    found = re.findall(r"^INFO: .* failed \(as expected\):\n((?:\t.*\n)+)", report, re.MULTILINE)
    return ["\n".join(line.strip() for line in text.splitlines()).strip() for text in found]


if __name__ == "__main__":
    main()
