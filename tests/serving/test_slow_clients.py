"""Clients that send or read slowly, or never end, over real connections of uvicorn's with the door in front."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.http import door
from serving.http.web import Answer, Request, Route
from serving.settings import Settings
from tests.serving.test_auth import gated

BIG = 1 << 20
GET = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"


class House:
    """A gate of so many places behind a port, whose handlers answer at once, at length, or after they were told to."""

    def __init__(self, **settings: Any) -> None:
        self.released = asyncio.Event()
        self.clients: list[Client] = []
        self.connection: Any = None
        routes = [("GET", "/x", self._short), ("GET", "/big", self._big), ("GET", "/hold", self._hold)]
        table = [Route(*route) for route in (*routes, ("POST", "/read", self._read))]
        self.settings = Settings(**settings)
        self.gate, self.tally = gated(self.settings, *table)
        self.state: Any = ServerState()
        self.state.default_headers = [(b"date", b"now")]

    async def _short(self, _: Request) -> Answer:
        return Answer({"ok": True})

    async def _big(self, _: Request) -> Answer:
        return Answer(bytes(BIG))

    async def _hold(self, _: Request) -> Answer:
        await self.released.wait()
        return Answer({"ok": True})

    async def _read(self, request: Request) -> Answer:
        return Answer({"bytes": len(await request.body(BIG, self.settings.body_timeout_s))})

    @asynccontextmanager
    async def open(self) -> AsyncIterator[House]:
        kind = door.behind(HttpToolsProtocol, self.gate, self.settings.write_timeout_s)
        config = Config(self.gate, log_config=None, lifespan="off")
        self.connection = lambda: kind(config=config, server_state=self.state, app_state={})
        server = await asyncio.get_running_loop().create_server(self.connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            for connection in list(self.state.connections):
                connection.transport.abort()
            for client in self.clients:
                client.writer.transport.abort()
            server.close()
            await asyncio.sleep(0)  # they close

    async def connect(self) -> Client:
        return self._kept(*await asyncio.open_connection("127.0.0.1", self.port))

    async def deaf(self, data: bytes = b"") -> Client:
        """A client that has asked and does not read, by a way that holds little of what it is told."""
        here, there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await asyncio.get_running_loop().connect_accepted_socket(self.connection, here)
        reader, writer = await asyncio.open_connection(sock=there, limit=2)
        writer.write(data)
        return self._kept(reader, writer)

    def _kept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Client:
        self.clients.append(Client(reader, writer))
        return self.clients[-1]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        self.writer.write(data)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        async with asyncio.timeout(10):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(body)

    async def lost(self) -> None:
        """Returns when the server has closed, or broken off, the connection."""
        async with asyncio.timeout(10):
            try:
                while await self.reader.read(1 << 20):
                    pass
            except ConnectionError:
                return


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def run(scenario: Any, **settings: Any) -> None:
    async def opened() -> None:
        async with House(**settings).open() as house:
            await scenario(house)

    asyncio.run(opened())


# --- who reads slowly ------------------------------------------------------------------------------------------------


def test_who_does_not_read_has_no_place_and_is_cut_off() -> None:
    async def scenario(house: House) -> None:
        await house.deaf(GET % b"big" * 20)
        await until(lambda: any(one.flow.write_paused for one in house.state.connections))
        assert house.gate.house.taken == 0
        assert (await (await house.connect()).ask(GET % b"x"))[0] == 200
        await until(lambda: len(house.state.connections) == 1)

    run(scenario, max_inflight=1, write_timeout_s=0.2)


def test_refusals_that_nobody_reads_do_not_pile_up() -> None:
    async def scenario(house: House) -> None:
        busy = await house.connect()
        busy.writer.write(GET % b"hold")
        await until(lambda: house.gate.house.full())
        deaf = await house.deaf()
        refused = 0

        def told() -> int:
            return len(house.tally.seen) + house.gate._turned_away

        while len(house.state.connections) == 2 and refused < 2000:
            refused += 1
            deaf.writer.write(GET % b"x")
            await until(lambda: told() == refused or len(house.state.connections) == 1)  # noqa: B023
        house.tally.flush()
        assert len(house.state.connections) == 1 and {status for status, *_ in house.tally.seen} == {429}
        house.released.set()
        assert (await busy.answer())[0] == 200

    run(scenario, max_inflight=1, write_timeout_s=60)


# --- who writes slowly -----------------------------------------------------------------------------------------------


def test_who_does_not_send_its_body_has_no_place() -> None:
    async def scenario(house: House) -> None:
        slow = [await house.connect() for _ in range(6)]
        for client in slow[:2]:
            client.writer.write(POST % 5 + b"ab")
        await until(lambda: house.gate.house.sending == 2)
        assert (await (await house.connect()).ask(GET % b"x"))[0] == 200
        assert (await (await house.connect()).ask(POST % 5 + b"whole"))[2] == {"bytes": 5}
        for client in slow[2:4]:  # there are as many as may take their time
            client.writer.write(POST % 5 + b"ab")
        await until(lambda: house.gate.house.sending == 4)
        for client in slow[4:]:  # and as many again
            status, headers, _ = await client.ask(POST % 5 + b"ab")
            assert status == 429 and "connection" not in headers
        for client in slow[2:4]:
            status, headers, body = await client.answer()
            assert (status, body["code"], headers["connection"]) == (429, "overloaded", "close")
            assert headers["retry-after"] == "1"
        for client in slow[:2]:
            assert (await client.ask(b"cde"))[2] == {"bytes": 5}
        assert house.gate.house.taken == house.gate.house.sending == 0

    run(scenario, max_inflight=2)


def test_no_more_bodies_are_held_than_places_allow_for() -> None:
    async def scenario(house: House) -> None:
        slow = [await house.connect() for _ in range(12)]
        for client in slow:
            client.writer.write(POST % 5 + b"ab")
            await asyncio.sleep(0.005)
            assert house.gate.house.sending <= 4
        told = [await client.answer() for client in slow[2:]]
        assert {(status, body["code"]) for status, _, body in told} == {(429, "overloaded")}
        assert sum("connection" not in headers for _, headers, _ in told) >= 6  # refused before they had sent

    run(scenario, max_inflight=2)


def test_a_body_that_was_let_in_is_answered_in_a_full_house() -> None:
    async def scenario(house: House) -> None:
        sending, busy = await house.connect(), await house.connect()
        sending.writer.write(POST % 5)
        await until(lambda: house.gate.house.sending == 1)
        busy.writer.write(GET % b"hold")
        await until(lambda: house.gate.house.taken == 1)
        assert (await sending.ask(b"whole"))[0] == 200
        status, headers, _ = await (await house.connect()).ask(GET % b"x")
        assert (status, headers["date"]) == (429, "now")
        house.released.set()
        assert (await busy.answer())[0] == 200

    run(scenario, max_inflight=1)


# --- who does not end ------------------------------------------------------------------------------------------------


def test_a_head_that_does_not_end_is_answered_and_read_no_further() -> None:
    async def scenario(house: House) -> None:
        for begun in (b"GET /", b"GET /x HTTP/1.1\r\nx-long: ", b"GET /x HTTP/1.1\r\n" + b"a: b\r\n" * 10_000):
            client = await house.connect()
            assert (await client.ask(GET % b"x"))[0] == 200
            client.writer.write(begun)
            for _ in range(4):
                client.writer.write(b"a" * 32_768)
                await client.writer.drain()
            status, headers, body = await client.answer()
            assert (status, body["code"], headers["connection"]) == (431, "head_too_large", "close")
            await client.lost()
        assert house.tally.seen[-1] == (431, "head_too_large", "other")

    run(scenario)


def test_what_follows_a_chunked_body_does_not_grow_either() -> None:
    async def scenario(house: House) -> None:
        client = await house.connect()
        chunked = b"POST /read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n"
        status, _, body = await client.ask(chunked + b"x-more: " + b"a" * 600_000)
        assert (status, body["code"]) == (431, "head_too_large")
        await until(lambda: house.gate.house.sending == 0)

    run(scenario)


def test_a_long_body_behind_a_short_head_is_none_of_that() -> None:
    async def scenario(house: House) -> None:
        client = await house.connect()
        for _ in range(2):
            assert (await client.ask(POST % 900_000 + bytes(900_000)))[2] == {"bytes": 900_000}
        small = b"POST /read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50_000
        assert (await client.ask(small + b"0\r\n\r\n"))[2] == {"bytes": 50_000}

    run(scenario)


def test_what_is_no_http_gets_the_one_body_that_errors_have() -> None:
    async def scenario(house: House) -> None:
        for junk in (b"\x16\x03\x01\x02\x00\r\n\r\n", POST[:-6] + b"abc\r\n\r\n"):
            client = await house.connect()
            status, headers, body = await client.ask(junk)
            assert (status, headers["content-type"]) == (400, "application/json")
            assert set(body) == {"error", "code"} and body["code"] == "http_invalid"
            await client.lost()

    run(scenario)


# --- what is not understood ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
@pytest.mark.parametrize("cut", [0, 20, 49, -5, -3])
def test_another_protocol_is_not_spoken_and_costs_no_body(name: bytes, cut: int) -> None:
    """As curl --http2 and Java's client ask for HTTP/2, in one piece or several, on a connection that goes on."""

    async def scenario(house: House) -> None:
        client = await house.connect()
        asking = POST[:-4] + b"\r\n%s: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        whole = asking % (5, name) + b"whole"
        for _ in range(2):
            if cut:
                client.writer.write(whole[:cut])
                await asyncio.sleep(0.01)
            assert (await client.ask(whole[cut:] if cut else whole))[2] == {"bytes": 5}
        upgrade = POST % 10 + b"\nupgrade: x"[:10]
        assert (await client.ask(upgrade))[2] == {"bytes": 10}  # in a body it is nobody's business

    run(scenario)


def test_a_connection_is_kept_where_the_answer_came_before_the_body() -> None:
    async def scenario(house: House) -> None:
        client = await house.connect()
        client.writer.write(POST.replace(b"/read", b"/none") % 5)
        assert (await client.answer())[0] == 404
        (connection,) = house.state.connections
        client.writer.write(b"whole")
        await until(lambda: not connection._within)
        armed = connection.timeout_keep_alive_task
        assert armed is not None and not armed.cancelled()  # else the sweep takes it for one that never asked
        assert (await client.ask(GET % b"x"))[0] == 200

    run(scenario)


def test_a_connection_that_is_refused_again_and_again_is_kept() -> None:
    async def scenario(house: House) -> None:
        busy, refused = await house.connect(), await house.connect()
        busy.writer.write(GET % b"hold")
        await until(lambda: house.gate.house.full())
        connection = next(one for one in house.state.connections if one.cycle is None)
        connection.timeout_keep_alive = 0.2
        for _ in range(8):
            assert (await refused.ask(GET % b"x"))[0] == 429
            await asyncio.sleep(0.05)
        begun = asyncio.get_running_loop().time()
        await refused.lost()  # once it asks no more
        assert 0.1 < asyncio.get_running_loop().time() - begun < 5
        house.released.set()

    run(scenario, max_inflight=1)
