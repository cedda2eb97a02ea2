"""What the server uses of uvicorn's inside: a version of uvicorn that changes it fails here.

Each method that is overridden or called stands with its signature, each attribute with its name.
Where one of them changes, read what uvicorn does with it before the bound in pyproject.toml is
raised.
"""

import ast
import inspect
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.server import uvicorn_cycle, uvicorn_protocol, uvicorn_server, worker

STARTUP = "(self, sockets: 'list[socket.socket] | None' = None) -> 'None'"
SERVER = {
    "__init__": "(self, config: 'Config') -> 'None'",
    "capture_signals": "(self) -> 'Generator[None, None, None]'",
    "config": "",
    "force_exit": "",
    "lifespan": "",
    "server_state": "",
    "should_exit": "",
    "shutdown": STARTUP,
    "started": "",
    "startup": STARTUP,
}
STATE = {"__init__": "(self) -> 'None'"}
PROTOCOL = {
    "__init__": "(self, config: 'Config', server_state: 'ServerState', app_state: 'dict[str, Any]',"
    " _loop: 'asyncio.AbstractEventLoop | None' = None) -> 'None'",
    "_start_asgi_task": "(self, cycle: 'RequestResponseCycle', app: 'ASGI3Application') -> 'None'",
    "access_logger": "",
    "app": "",
    "connection_lost": "(self, exc: 'Exception | None') -> 'None'",
    "connection_made": "(self, transport: 'asyncio.Transport') -> 'None'",
    "connections": "",
    "cycle": "",
    "data_received": "(self, data: 'bytes') -> 'None'",
    "eof_received": "(self) -> 'None'",
    "expect_100_continue": "",
    "flow": "",
    "headers": "",
    "logger": "",
    "loop": "",
    "on_body": "(self, body: 'bytes') -> 'None'",
    "on_headers_complete": "(self) -> 'None'",
    "on_message_begin": "(self) -> 'None'",
    "on_message_complete": "(self) -> 'None'",
    "on_response_complete": "(self) -> 'None'",
    "parser": "",
    "pause_writing": "(self) -> 'None'",
    "pipeline": "",
    "resume_writing": "(self) -> 'None'",
    "scheme": "",
    "scope": "",
    "server_state": "",
    "shutdown": "(self) -> 'None'",
    "transport": "",
    "url": "",
}
CYCLE = dict.fromkeys(
    (
        *("body", "disconnected", "keep_alive", "message_event", "more_body"),
        *("response_complete", "response_started", "scope"),
    ),
    "",
)
OWN_CYCLE = dict.fromkeys(
    (
        *("body", "chunked_encoding", "default_headers", "disconnected", "expected_content_length"),
        *("flow", "keep_alive", "message_event", "more_body", "on_response", "response_complete"),
        *("response_started", "scope", "transport", "waiting_for_100_continue"),
    ),
    "",
) | {
    "__init__": "(self, scope: 'HTTPScope', transport: 'asyncio.Transport', flow: 'FlowControl',"
    " logger: 'logging.Logger', access_logger: 'logging.Logger', access_log: 'bool',"
    " default_headers: 'list[tuple[bytes, bytes]]', message_event: 'asyncio.Event',"
    " expect_100_continue: 'bool', keep_alive: 'bool', on_response: 'Callable[..., None]')",
    "receive": "(self) -> 'ASGIReceiveEvent'",
    "send": "(self, message: 'ASGISendEvent') -> 'None'",
}
FLOW = {"pause_reading": "(self) -> None", "resume_reading": "(self) -> None"}
CONFIG = {"timeout_graceful_shutdown": ""}


def config() -> uvicorn.Config:
    made = uvicorn.Config(Mock(), http=HttpToolsProtocol, log_config=None, interface="asgi3")
    made.load()
    return made


def server() -> uvicorn.Server:
    """One of which `_serve` has made the lifespan."""
    made = uvicorn.Server(config())
    made.lifespan = made.config.lifespan_class(made.config)
    return made


def protocol() -> HttpToolsProtocol:
    """One that is receiving a head."""
    made = HttpToolsProtocol(config(), ServerState(), {}, Mock())
    made.on_message_begin()
    return made


def cycle() -> RequestResponseCycle:
    parameters = list(inspect.signature(RequestResponseCycle).parameters)
    about: dict[str, Any] = dict.fromkeys(parameters)
    return RequestResponseCycle(**about | {"scope": {"headers": []}, "default_headers": []})


def defined(ours: type) -> set[str]:
    return {name for name, value in vars(ours).items() if inspect.isfunction(value)}


def used(tree: ast.AST, owner: str) -> set[str]:
    """The attributes of what is called `owner`, or is an attribute of that name."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and owner in (getattr(node.value, "id", ""), getattr(node.value, "attr", ""))
    }


def known(names: set[str], theirs: object) -> dict[str, str]:
    """Those names that uvicorn's object has, with the signatures of methods."""
    methods = {name: getattr(type(theirs), name, None) for name in names & set(dir(theirs))}
    return {
        name: str(inspect.signature(method)) if inspect.isfunction(method) else ""
        for name, method in methods.items()
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (uvicorn_server.BaseServer, server, SERVER),
        (uvicorn_server.Server, server, SERVER),
        (worker._Server, server, SERVER),
        (uvicorn_protocol.ServerConnections, ServerState, STATE),
        (uvicorn_protocol.Protocol, protocol, PROTOCOL),
        (uvicorn_cycle.Cycle, cycle, OWN_CYCLE),
    ],
)
def test_a_class_that_inherits(ours: type, theirs: Any, expected: dict[str, str]) -> None:
    """It overrides and uses what is listed, and hides nothing else by accident."""
    names = defined(ours) | used(ast.parse(inspect.getsource(ours)), "self")
    found = known(names, theirs())
    if ours in (uvicorn_server.Server, worker._Server):  # what they add to their base
        assert found.items() <= expected.items()
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("module", "name", "theirs", "expected"),
    [
        (uvicorn_protocol, "cycle", cycle, CYCLE),
        (uvicorn_protocol, "flow", lambda: FlowControl(Mock()), FLOW),
        (uvicorn_server, "config", config, CONFIG),
    ],
)
def test_an_object_that_is_used(
    module: Any, name: str, theirs: Any, expected: dict[str, str]
) -> None:
    names = used(ast.parse(inspect.getsource(module)), name)
    assert known(names, theirs()) == expected
    assert names == set(expected)


def test_a_signature_that_changes_is_found() -> None:
    """And a method that goes, and an attribute that comes under a name of ours."""

    class Changed(HttpToolsProtocol):
        on_body = None  # type: ignore[assignment]
        _pieces = ()

        def shutdown(self, timeout_s: float = 0) -> None: ...

    changed = Changed(config(), ServerState(), {}, Mock())
    found = known(defined(uvicorn_protocol.Protocol) | {"_pieces"}, changed)
    assert found["shutdown"] != PROTOCOL["shutdown"]
    assert found["on_body"] != PROTOCOL["on_body"]
    assert "_pieces" in found
