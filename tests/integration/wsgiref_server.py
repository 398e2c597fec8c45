"""``service:app`` on the standard library's server, which takes over the listening socket that it is told."""

from __future__ import annotations

import socket
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import service


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
    server = Server(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(service.app)
    server.serve_forever()
