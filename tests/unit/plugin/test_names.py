"""Names, by table."""

from __future__ import annotations

import itertools
import random
import string

import pytest
from protogen import _case

from protoc_gen_connect_python import names


@pytest.mark.parametrize(
    ("proto", "module"),
    [
        ("eliza.proto", "eliza_pb2"),
        ("a/b/eliza.proto", "a.b.eliza_pb2"),
        ("a-b/c-d.proto", "a_b.c_d_pb2"),
        ("a.proto/b.proto", "a.proto.b_pb2"),  # only the suffix goes
        ("a.b.proto", "a.b_pb2"),  # protoc writes a/b_pb2.py
        ("old.protodevel", "old_pb2"),
        ("plain", "plain_pb2"),
        ("import/class.proto", "import.class_pb2"),
        ("google/protobuf/empty.proto", "google.protobuf.empty_pb2"),
    ],
)
def test_module_name(proto: str, module: str) -> None:
    assert names.module_name(proto) == module


@pytest.mark.parametrize(
    ("module", "possible"),
    [
        ("a.b.eliza_pb2", True),
        ("match.type.case_pb2", True),  # keywords only where the grammar says so
        ("größe_pb2", True),
        ("a.class.eliza_pb2", False),
        ("None.eliza_pb2", False),
        ("2024.eliza_pb2", False),
        ("a.1st_pb2", False),
        ("with space_pb2", False),
        ("ﬁle_pb2", False),  # Python would look for "file_pb2"
        ("a..b_pb2", False),
    ],
)
def test_can_be_imported(module: str, possible: bool) -> None:
    assert names.can_be_imported(module) is possible


@pytest.mark.parametrize(
    ("name", "snake"),
    [
        ("Say", "say"),
        ("SAY", "say"),
        ("say", "say"),
        ("SayHello", "say_hello"),
        ("sayHello", "say_hello"),
        ("say_hello", "say_hello"),
        ("Say_Hello", "say_hello"),
        ("say__hello", "say_hello"),
        ("GetHTTPResponse", "get_http_response"),
        ("HTTPGet", "http_get"),
        ("GetV2", "get_v2"),
        ("GetV1beta1Thing", "get_v1_beta1_thing"),
        ("Get2Things", "get2_things"),
        ("ABC123Def", "abc123_def"),
        ("X", "x"),
        ("_Say", "_say"),
        ("__init__", "__init__"),
        ("Say_", "say_"),
        ("_", "_"),
        ("___", "___"),
        ("_1", "_1"),
    ],
)
def test_snake_case(name: str, snake: str) -> None:
    assert names.snake_case(name) == snake


def test_snake_case_is_protogens_within_a_name() -> None:
    # People have code with those names in it. (At the ends protogen drops underscores, and names fall together.)
    choose = random.Random(1)
    for length in itertools.islice(itertools.cycle(range(1, 16)), 3000):
        name = choose.choice(string.ascii_letters) + "".join(choose.choices("aabcABCxyzXYZ_019", k=length))
        assert names.snake_case(name.rstrip("_")) == _case.snake_case(name.rstrip("_")), name


METHODS = [
    # Keywords, and words that mean something only in places.
    (["import", "class", "None", "Class"], ["import_", "class_", "none", "Class"]),
    (["match", "type", "print", "register", "mro"], ["match", "type", "print", "register", "mro"]),
    # Of names that fall together, the first keeps the name and the next takes the spelling of the .proto.
    (["GetHTTPResponse", "GetHttpResponse"], ["get_http_response", "GetHttpResponse"]),
    (["GetHttpResponse", "GetHTTPResponse"], ["get_http_response", "GetHTTPResponse"]),
    (["Say", "SAY", "say"], ["say", "SAY", "say_"]),
    (["say", "Say", "SAY"], ["say", "Say", "SAY"]),
    (["None", "none", "NONE"], ["none", "none_", "NONE"]),
    (["none", "None"], ["none", "None_"]),
    (["a_", "A"], ["a_", "a"]),
    # What every client has.
    (["close", "Close", "CLOSE"], ["close_", "Close", "CLOSE"]),
    (["aclose", "BaseUrl", "base_url"], ["aclose_", "base_url_", "base_url__"]),
    # Low-level methods: `call_` and the name, which is as taken as the name itself.
    (["Call", "call_", "call_say"], ["call", "call__", "call_say_"]),
    (["call_say", "Say"], ["call_say_", "say"]),
    (["call_say", "Say_"], ["call_say_", "Say_"]),
    (["Say_", "call_say"], ["say_", "call_say__"]),
    (["CallCallSay", "CallSay"], ["call_call_say_", "CallSay"]),
    # Leading underscores.
    (["_foo", "foo_"], ["foo_", "foo__"]),
    (["__init__", "__class__"], ["init____", "class____"]),
    (["_caller", "_import"], ["caller_", "import_"]),
    (["_call_x"], ["call_x__"]),
    (["_", "__"], ["rpc__", "rpc___"]),
    (["_1", "_1st"], ["rpc_1_", "rpc_1_st_"]),
]


@pytest.mark.parametrize(("rpcs", "methods"), METHODS)
def test_method_names(rpcs: list[str], methods: list[str]) -> None:
    assert names.method_names(rpcs) == methods


AWKWARD = sorted({rpc for rpcs, _ in METHODS for rpc in rpcs})


def test_an_appended_rpc_renames_none_before_it() -> None:
    choose = random.Random(2)
    for _ in range(200):
        rpcs = choose.sample(AWKWARD, k=len(AWKWARD))
        whole = names.method_names(rpcs)
        for length in range(len(rpcs)):
            assert names.method_names(rpcs[:length]) == whole[:length]


def test_method_names_are_usable_and_apart() -> None:
    choose = random.Random(3)
    for _ in range(200):
        methods = names.method_names(choose.sample(AWKWARD, k=len(AWKWARD)))
        attributes = [*methods, *(f"call_{method}" for method in methods)]
        assert len(set(attributes)) == len(attributes)
        assert all(names.can_be_imported(name) and not name.startswith("_") for name in attributes)
        assert not {"close", "aclose", "base_url"}.intersection(attributes)


def test_service_names() -> None:
    (service,) = names.service_names([("ElizaService", ["Say", "Converse"])])
    assert service == names.ServiceNames(
        path_prefix="ELIZA_SERVICE_PATH_PREFIX",
        client="ElizaServiceClient",
        async_client="AsyncElizaServiceClient",
        protocol="ElizaServiceProtocol",
        async_protocol="AsyncElizaServiceProtocol",
        wsgi="wsgi_eliza_service",
        asgi="asgi_eliza_service",
        constant="_ELIZA_SERVICE",
        methods=("say", "converse"),
        method_constants=("_ELIZA_SERVICE_SAY", "_ELIZA_SERVICE_CONVERSE"),
    )


@pytest.mark.parametrize(
    ("services", "attribute", "expected"),
    [
        (["Foo", "AsyncFoo"], "client", ["FooClient", "AsyncFooClient_"]),
        (["Foo", "AsyncFoo"], "async_client", ["AsyncFooClient", "AsyncAsyncFooClient"]),
        (["Foo", "AsyncFoo"], "protocol", ["FooProtocol", "AsyncFooProtocol_"]),
        (["Foo", "AsyncFoo"], "wsgi", ["wsgi_foo", "wsgi_async_foo"]),
        (["AsyncFoo", "Foo"], "client", ["AsyncFooClient", "FooClient"]),
        (["AsyncFoo", "Foo"], "async_client", ["AsyncAsyncFooClient", "AsyncFooClient_"]),
        (["Foo", "FOO", "foo"], "client", ["FooClient", "FOOClient", "fooClient"]),
        (["Foo", "FOO", "foo"], "wsgi", ["wsgi_foo", "wsgi_FOO", "wsgi_foo_"]),
        (["FOO", "Foo", "foo"], "path_prefix", ["FOO_PATH_PREFIX", "Foo_PATH_PREFIX", "foo_PATH_PREFIX"]),
        (["Foo", "FOO", "foo"], "constant", ["_FOO", "_FOO_", "_FOO__"]),
        (["lower_case", "import"], "client", ["lower_caseClient", "importClient"]),
        (["lower_case", "import"], "asgi", ["asgi_lower_case", "asgi_import"]),
        (["_Foo", "__Foo"], "client", ["Foo_Client", "Foo__Client"]),
        (["_Foo", "__Foo"], "constant", ["_FOO_", "_FOO__"]),
        (["_", "_1st"], "client", ["Service_Client", "Service1st_Client"]),
        (["_", "_1st"], "path_prefix", ["SERVICE__PATH_PREFIX", "SERVICE1_ST__PATH_PREFIX"]),
    ],
)
def test_names_of_several_services(services: list[str], attribute: str, expected: list[str]) -> None:
    named = names.service_names((service, []) for service in services)
    assert [getattr(service, attribute) for service in named] == expected


def test_constants_of_rpcs_do_not_fall_together() -> None:
    named = names.service_names(
        [("Foo", ["BarBaz", "barBaz", "path_prefix"]), ("FooBar", ["Baz"]), ("Foo_Bar_Baz", [])]
    )
    constants = [constant for service in named for constant in (service.constant, *service.method_constants)]
    assert constants == [
        *("_FOO", "_FOO_BAR_BAZ_", "_FOO_BARBAZ", "_FOO_PATH_PREFIX"),
        *("_FOO_BAR", "_FOO_BAR_BAZ__"),
        "_FOO_BAR_BAZ",
    ]


def test_an_appended_service_or_rpc_renames_nothing_public() -> None:
    services = ["Foo", "AsyncFoo", "FOO", "FooBar", "_Foo", "Foo_", "Sync", "_", "AsyncAsyncFoo"]
    choose = random.Random(4)
    for _ in range(200):
        order = choose.sample(services, k=len(services))
        whole = [service.top_level() for service in names.service_names((service, []) for service in order)]
        for length in range(len(order)):
            fewer = names.service_names((service, choose.sample(AWKWARD, k=5)) for service in order[:length])
            assert [service.top_level() for service in fewer] == whole[:length]
