"""An application on the standard library's server.

python wsgiref_server.py <descriptor of the listening socket> <module>:<name>
"""

from __future__ import annotations

import importlib
import socket
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class Server(WSGIServer):
    def server_bind(self) -> None:
        self.socket.close()
        self.socket = socket.socket(fileno=int(sys.argv[1]))
        super_address = self.socket.getsockname()
        self.server_address = super_address
        self.server_name, self.server_port = super_address[0], super_address[1]
        self.setup_environ()

    def server_activate(self) -> None:
        pass  # it listens already


if __name__ == "__main__":
    module, _, name = sys.argv[2].partition(":")
    server = Server(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(getattr(importlib.import_module(module), name))
    server.serve_forever()
