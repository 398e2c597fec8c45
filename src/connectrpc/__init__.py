"""Schema-first RPC for Python: typed clients and services for the Connect protocol.

Start from a ``.proto`` and ``protoc-gen-connect_python``; what the generated code takes and gives is documented in
``connectrpc.client``, ``connectrpc.server``, ``connectrpc.errors``, ``connectrpc.headers``, ``connectrpc.unary`` and
``connectrpc.streams``.
"""

from pkgutil import extend_path

# Protobuf packages below `connectrpc` (the well-known `connectrpc.eliza.v1` is one) generate Python modules below this
# very package. With this they are found in any other `connectrpc` folder on sys.path.
__path__ = extend_path(__path__, __name__)

__version__ = "0.5.0"

__all__ = ["__version__"]
