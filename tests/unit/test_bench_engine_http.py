"""The benchmark's HTTP caller times and counts what a server streams, however it is cut."""

from __future__ import annotations

import asyncio

import pytest

from bench.engine import http_load
from bench.engine.flight import Order

_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def event(text: str) -> bytes:
    body = f'data: {{"choices":[{{"index":0,"text":"{text}"}}]}}\n\n'.encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def ending(tokens: int) -> bytes:
    body = (
        f'data: {{"choices":[],"usage":{{"completion_tokens":{tokens}}}}}\n\ndata: [DONE]\n\n'
    ).encode()
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


class Server:
    """Answers each request with the same pieces, one after the other."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                for piece in self._pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def answers(pieces: list[bytes], waves: list[list[list[int]]] | None = None):
    server = Server(pieces)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        order = Order("http", "m", 3, waves or [[[1, 2]]], target=f"127.0.0.1:{port}")
        flights = await http_load.load(order)
    return flights, server.bodies


_WHOLE = _HEAD + event("a") + event("b") + event("c") + ending(3)


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
async def test_an_answer_is_counted_by_its_usage_however_it_is_cut(size):
    pieces = [_WHOLE[at : at + size] for at in range(0, len(_WHOLE), size)]
    ((flight,), _) = await answers(pieces)
    assert (flight.tokens, flight.error) == (3, "")
    assert flight.sent < flight.first <= flight.last


async def test_the_time_of_the_last_token_is_not_that_of_the_usage():
    ((flight,), _) = await answers([_HEAD + event("a"), event("b"), *([b""] * 20), ending(2)])
    assert flight.tokens == 2
    assert flight.first < flight.last


async def test_waves_use_their_connections_again():
    flights, bodies = await answers([_WHOLE], [[[1], [2]], [[3], [4]]])
    assert [flight.tokens for flight in flights] == [3, 3, 3, 3]
    assert sorted(body.split(b'"prompt": [')[1][:1] for body in bodies) == [b"1", b"2", b"3", b"4"]


async def test_a_refusal_is_told_as_the_server_says_it():
    ((flight,), _) = await answers([b"HTTP/1.1 400 Bad Request\r\n\r\nno such model"])
    assert flight.error == "HTTP/1.1 400 Bad Request no such model"
    assert flight.tokens == 0
