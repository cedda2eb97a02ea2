"""A body on its way from the socket to the application, piece by piece."""

import asyncio
import os
from unittest.mock import Mock

import uvicorn
from starlette.types import Receive, Scope, Send

from service.connections import Connections
from service.protocol import WAKE_BYTES, Protocol

PIECE_BYTES = 65536


def test_pieces_that_come_before_the_application_asks_are_kept() -> None:
    """Three times what a connection holds, all there before the application's first step."""
    body = os.urandom(3 * WAKE_BYTES + 1)

    async def steps() -> None:
        received = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            more = True
            while more:
                message = await receive()
                received.append(message["body"])
                more = message["more_body"]
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})

        config = uvicorn.Config(app, http=Protocol, lifespan="off", log_config=None)
        config.load()
        state = Connections(head_timeout_s=10)
        protocol = Protocol(config, state, {})
        transport = Mock(spec=asyncio.Transport)
        transport.get_extra_info.return_value = None
        transport.is_closing.return_value = False
        protocol.connection_made(transport)
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        protocol.data_received(head % len(body))
        for at in range(0, len(body), PIECE_BYTES):
            protocol.data_received(body[at : at + PIECE_BYTES])
        await asyncio.gather(*state.tasks)
        assert b"".join(received) == body

    asyncio.run(asyncio.wait_for(steps(), 10))
