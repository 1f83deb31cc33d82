"""Addresses of RPC servers: ``unix:/path`` and ``host:port`` (also ``unix:///path``, ``tcp://host:port``)."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass

from xllm.errors import ConfigError

MAX_UNIX_PATH_BYTES = 107
"""Longest path a Linux ``sockaddr_un`` holds, without its final zero."""

MAX_NAME_PART = 63
"""Longest part of a host name between two dots."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a unix socket path, or a host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        ConfigError: it is neither of the two forms.
    """
    hint = "use unix:/path or host:port"
    if not text.isprintable():
        raise ConfigError(f"address {text!r} has characters that no address has", hint=hint)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path[2:] if path.startswith("///") else path
        if not path.startswith("/"):
            raise ConfigError(f"address {text!r} has no absolute path", hint=hint)
        if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
            raise ConfigError(
                f"socket path of {text!r} is longer than {MAX_UNIX_PATH_BYTES} bytes",
                hint="use a shorter directory",
            )
        return Address(path=path)
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"address {text!r} is not understood", hint=hint)
    if " " in host or any(len(part) > MAX_NAME_PART for part in host.split(".")):
        raise ConfigError(f"address {text!r} has no host name", hint=hint)
    return Address(host=host, port=int(port))


async def open_transport(
    address: Address, factory: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
) -> asyncio.BaseTransport:
    """Connect; raises OSError (or ssl.SSLError) when nobody answers."""
    loop = asyncio.get_running_loop()
    if address.path:
        hostname = "localhost" if tls else None
        transport, _ = await loop.create_unix_connection(
            factory, address.path, ssl=tls, server_hostname=hostname
        )
        return transport
    transport, _ = await loop.create_connection(factory, address.host, address.port, ssl=tls)
    _disable_nagle(transport)
    return transport


async def open_server(
    address: Address, factory: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
) -> tuple[asyncio.AbstractServer, Address]:
    """Listen; returns the server and the address it really has (port 0 becomes a number).

    A unix socket is readable by its owner only; a stale socket file of a dead server is replaced.

    Raises:
        ConfigError: the address is in use or not ours.
    """
    loop = asyncio.get_running_loop()
    try:
        if address.path:
            _remove_stale(address.path)
            sock = _bind_private(address.path)
            return await loop.create_unix_server(factory, sock=sock, ssl=tls), address
        server = await loop.create_server(factory, address.host, address.port, ssl=tls)
    except OSError as exc:
        raise ConfigError(
            f"cannot listen on {address}: {exc.strerror or exc}", hint="choose another address"
        ) from exc
    port = server.sockets[0].getsockname()[1]
    return server, Address(host=address.host, port=port)


def _bind_private(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, 0o600)  # nobody can connect before listen(), so there is no gap
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ConfigError(f"cannot listen on unix:{path}: a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)
            return
        except OSError as exc:
            raise ConfigError(f"cannot listen on unix:{path}: {exc}") from exc
    raise ConfigError(
        f"cannot listen on unix:{path}: another server answers there", hint="choose another path"
    )


def _disable_nagle(transport: asyncio.BaseTransport) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
