"""An HTTP server that does what the first word of each body demands, and counts the words.

It is started as a process: `obedient.py [AFTER SECONDS]`. It prints its port. With AFTER and
SECONDS it stands still for SECONDS, beginning AFTER seconds after its first request, and prints the
times of both ends (CLOCK_MONOTONIC). When its stdin ends, it prints its counts. It is an
independent counterpart of `topfive bench load`.
"""

import asyncio
import json
import socket
import struct
import sys
import time
from collections import Counter
from typing import cast

RETRY = "Retry-After: 1\r\n"
WAIT_S = 0.05
ANSWERS = {
    "good": (200, ""),
    "slow": (200, ""),
    "once": (200, "Connection: close\r\n"),
    "hangup": (200, ""),
    "busy": (503, RETRY),
    "bare": (503, ""),
    "limited": (429, RETRY),
    "late": (504, ""),
}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: a closed connection is reset

words: Counter[str] = Counter()
heads: set[str] = set()
connections = {"now": 0, "most": 0, "made": 0}


class Obedient(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.held = bytearray()
        connections["made"] += 1
        connections["now"] += 1
        connections["most"] = max(connections["most"], connections["now"])

    def connection_lost(self, error: Exception | None) -> None:
        connections["now"] -= 1

    def data_received(self, data: bytes) -> None:
        self.held += data
        at = self.held.find(b"\r\n\r\n")
        if at < 0:
            return
        head, body = bytes(self.held[:at]).decode(), self.held[at + 4 :]
        if len(body) == int(head.lower().split("content-length: ")[1].split()[0]):
            heads.add(head)
            self.held.clear()
            self.obey(bytes(body[:20]).split()[0].decode())

    def obey(self, word: str) -> None:
        if not words and len(sys.argv) > 1:
            asyncio.get_running_loop().call_later(float(sys.argv[1]), stand_still)
        words[word] += 1
        if word == "slow":
            asyncio.get_running_loop().call_later(WAIT_S, self.answer, word)
        elif word in ANSWERS:
            self.answer(word)
        elif word == "chunked":
            self.transport.write(CHUNKED)
        elif word == "junk":
            self.transport.write(b"what?\r\n\r\n")
        elif word == "reset":
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        elif word == "gone":
            self.transport.close()
        else:
            assert word == "silent", word

    def answer(self, word: str) -> None:
        status, headers = ANSWERS[word]
        self.transport.write(
            f"HTTP/1.1 {status} X\r\n{headers}Content-Length: 2\r\n\r\n{{}}".encode()
        )
        if word in ("once", "hangup"):
            self.transport.close()


def stand_still() -> None:
    begun = time.monotonic()
    time.sleep(float(sys.argv[2]))
    print(json.dumps([begun, time.monotonic()]), flush=True)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Obedient, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(json.dumps({"words": words, "heads": sorted(heads), "connections": connections}))
    server.close()


asyncio.run(main())
