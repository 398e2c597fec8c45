"""Has a page in headless Chromium call our services with connect-web: from another origin, so with CORS.

The page and its script are served from here. What it finds it posts back, line by line.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certificates import Authority
from rawhttp import HOST
from servers import run_server

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["call_from_browser", "find_browser"]

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]

LIMIT_SECONDS = 300.0
"""Far beyond what all cases take together, with Chromium's start."""

STOP_SECONDS = 5.0

CHROMIUM_OPTIONS = [
    *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-sync"),
    # Nothing of its own, to nobody.
    *("--disable-background-networking", "--disable-component-update", "--disable-domain-reliability"),
    # A page that nobody looks at has its timers slowed down.
    *("--disable-background-timer-throttling", "--disable-renderer-backgrounding"),
]

PAGE = b'<!doctype html><meta charset="utf-8"><title>connect-web</title><script src="browser.js"></script>'


def find_browser() -> str | None:
    """Where Chromium is, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def call_from_browser(browser: str, script: Path) -> bool:
    """Whether all cases pass.

    Args:
        browser: Chromium.
        script: browser.mjs with all that it imports.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        page = stack.enter_context(_serve_page(script.read_bytes()))
        certificate = Authority(directory, "authority").issue("server")
        here = str(Path(__file__).parent)
        told = []
        for kind, app, version, options in [
            ("gunicorn-gthread", "cors_apps:wsgi_app", "1.1", ("--pythonpath", here)),
            ("uvicorn-httptools", "cors_apps:asgi_app", "1.1", ("--app-dir", here)),
            ("uvicorn-http2", "cors_apps:asgi_app", "2", ("--app-dir", here, "--ssl-certfile", str(certificate))),
        ]:
            running = run_server(
                kind, directory, app=app, options=options, tls="--ssl-certfile" in options, ORIGIN=page.origin
            )
            told.append({"name": kind, "url": stack.enter_context(running).url, "http": version})
        url = f"{page.origin}/?{urllib.parse.urlencode({'servers': json.dumps(told)})}"
        # Were the errors of all certificates ignored, nothing would be cached.
        trust = f"--ignore-certificate-errors-spki-list={_fingerprint(certificate)}"
        return _visit([browser, trust], url, directory, page)


class _Page(ThreadingHTTPServer):
    """Serves the page, and is told by it what it has found."""

    daemon_threads = True
    failed: int | None = None

    def __init__(self, script: bytes) -> None:
        self.script = script
        self.done = threading.Event()
        super().__init__((HOST, 0), _PageHandler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: Chromium closes its connections as it likes."""

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.server_port}"


class _PageHandler(BaseHTTPRequestHandler):
    server: _Page
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(200, PAGE, "text/html")
        elif path == "/browser.js":
            self._answer(200, self.server.script, "text/javascript")
        else:
            self._answer(404, b"", "text/plain")

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["content-length"])).decode("utf-8", "replace")
        if self.path == "/line":
            print(text, flush=True)
        else:
            self.server.failed = int(text)
            self.server.done.set()
        self._answer(200, b"", "text/plain")

    def _answer(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def _serve_page(script: bytes) -> Iterator[_Page]:
    with _Page(script) as page:
        thread = threading.Thread(target=page.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield page
        finally:
            page.shutdown()
            thread.join()


def _visit(browser: list[str], url: str, directory: Path, page: _Page) -> bool:
    options = [*CHROMIUM_OPTIONS, f"--user-data-dir={directory / 'profile'}"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # there is none for root
    log = directory / "chromium.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*browser, *options, url],
            cwd=directory,
            # What it keeps outside of its profile goes away with it.
            env={**os.environ, "HOME": str(directory), "XDG_CONFIG_HOME": str(directory / "config")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        waited = 0.0
        while waited < LIMIT_SECONDS and process.poll() is None and not page.done.wait(0.5):
            waited += 0.5
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if page.failed is None:
        ended = f"ended with {process.returncode}" if waited < LIMIT_SECONDS else f"not over after {LIMIT_SECONDS} s"
        print(f"FAIL  {browser[0]}: {ended}\n{log.read_text('utf-8', 'replace')}", flush=True)
    return page.failed == 0


def _fingerprint(certificate: Path) -> str:
    """By what Chromium knows a certificate's key."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(encoded).digest()).decode()
