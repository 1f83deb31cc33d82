"""Opens the store that the configuration names."""

from __future__ import annotations

import ssl

from xllm.base.waits import WaitTable
from xllm.config.cluster import RegistryConfig
from xllm.errors import ConfigError, boundary
from xllm.registry.rpc_store import RpcStore
from xllm.registry.store import Store
from xllm.rpc.address import parse_address


def open_store(config: RegistryConfig, *, waits: WaitTable | None = None) -> Store:
    """A client; nothing is connected yet. Call inside the event loop.

    Raises:
        ConfigError: no registry is configured, an address or a TLS file cannot be read.
    """
    if not config.url:
        raise ConfigError(
            "no registry is given", hint="use --registry etcd://HOST:PORT, tcp://HOST:PORT or unix:///PATH"
        )
    if not config.is_etcd:
        return RpcStore(config.url, token=config.token, timeout_s=config.timeout_s, waits=waits)
    from xllm.registry.etcd import EtcdStore  # its HTTP client is a tenth of a second to import

    endpoints = [str(parse_address(part)) for part in config.url.removeprefix("etcd://").split(",")]
    return EtcdStore(
        endpoints,
        user=config.user,
        password=config.password,
        tls=_tls(config),
        timeout_s=config.timeout_s,
    )


def _tls(config: RegistryConfig) -> ssl.SSLContext | None:
    if not config.ca_file:
        return None
    with boundary(ConfigError, "the registry's TLS files cannot be read"):
        context = ssl.create_default_context(cafile=config.ca_file)
        if config.cert_file:
            context.load_cert_chain(config.cert_file, config.key_file)
    return context
