"""Generate code from eliza.proto, serve it under gunicorn, and call every RPC: ``just demo``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
GENERATED = HERE / "gen"


def main() -> int:
    print("$ buf generate", flush=True)
    shutil.rmtree(GENERATED, ignore_errors=True)
    subprocess.run(["buf", "generate"], cwd=HERE.parent.parent, check=True)
    for path in sorted(GENERATED.iterdir()):
        print("  ", path.relative_to(HERE.parent.parent))

    environment = {**os.environ, "PYTHONPATH": f"{GENERATED}{os.pathsep}{HERE}"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Handing over a socket that listens already: no port can be taken in between, no request can come too early.
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"\n$ gunicorn service:app   # on {base_url}", flush=True)
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "service:app", "--bind", f"fd://{listener.fileno()}"],
            env={**environment, "GUNICORN_CMD_ARGS": "--threads 4 --log-level warning"},
            pass_fds=[listener.fileno()],
        )
    try:
        print("\nWhile this runs, it answers curl too:\n")
        print("  curl -H 'Content-Type: application/json' -d '{\"sentence\": \"I am a stranger here\"}' \\")
        print(f"    {base_url}/connectrpc.eliza.v1.ElizaService/Say", flush=True)
        called = subprocess.run([sys.executable, HERE / "calls.py", base_url], env=environment, timeout=60)
        if called.returncode == 0 and sys.stdout.isatty():
            print("\nThe server stays for another 20 seconds, for curl; Ctrl-C ends it sooner.", flush=True)
            time.sleep(20)
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait(timeout=10)
    return called.returncode


if __name__ == "__main__":
    sys.exit(main())
