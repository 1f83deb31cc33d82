from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from xllm.errors import ConfigError
from xllm.rpc.address import Address, open_server, parse_address


@pytest.mark.parametrize(
    ("text", "address", "is_local"),
    [
        ("unix:/run/x.sock", Address(path="/run/x.sock"), True),
        ("unix:///run/x.sock", Address(path="/run/x.sock"), True),
        ("127.0.0.1:80", Address(host="127.0.0.1", port=80), True),
        ("tcp://0.0.0.0:80", Address(host="0.0.0.0", port=80), False),
        ("[::1]:80", Address(host="::1", port=80), True),
        ("gpu-3:0", Address(host="gpu-3", port=0), False),
    ],
)
def test_both_forms_are_read(text: str, address: Address, is_local: bool) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert address.is_local == is_local


@pytest.mark.parametrize(
    "text", ["", "unix:relative", "unix:/" + "x" * 120, ":80", "host", "host:", "host:x", "host:70000"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"address|socket path"):
        parse_address(text)


def test_unix_socket_is_private_and_replaces_only_a_dead_one(tmp_path: Path) -> None:
    path = str(tmp_path / "s")

    async def run() -> None:
        server, _ = await open_server(Address(path=path), asyncio.Protocol, None)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(ConfigError, match="another server"):
            await open_server(Address(path=path), asyncio.Protocol, None)
        server.close()
        assert os.path.exists(path)  # a crashed server leaves its file behind
        again, _ = await open_server(Address(path=path), asyncio.Protocol, None)
        again.close()

    asyncio.run(run())


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        asyncio.run(open_server(Address(path=str(path)), asyncio.Protocol, None))
    assert path.read_text() == "precious"
