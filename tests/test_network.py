import asyncio
import socket

import aiohttp
import pytest

from foreserve.network import fault


async def _asked(url: str) -> Exception:
    async with aiohttp.ClientSession() as session:
        with pytest.raises((aiohttp.ClientError, OSError)) as caught:
            async with session.get(url) as reply:
                await reply.read()
    return caught.value


def test_a_port_where_nobody_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        error = asyncio.run(_asked(f"http://127.0.0.1:{bound.getsockname()[1]}"))
    assert fault(error) == "connection refused"


def test_a_name_that_nobody_knows():
    words = fault(asyncio.run(_asked("http://no-such-host.invalid/")))
    assert words[0].islower()
    assert "no-such-host" not in words
    assert "ssl" not in words


def test_an_answer_that_breaks_off():
    async def main() -> Exception:
        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(half, "127.0.0.1", 0)
        async with server:
            return await _asked(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    assert fault(asyncio.run(main())) == "the connection ended within it"


def test_what_the_system_did_not_say():
    assert fault(ValueError("too long")) == "too long"
    assert fault(TimeoutError()) == "TimeoutError"
