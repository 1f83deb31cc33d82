"""Membership: an engine's place in a registry, from ready to its farewell."""

from __future__ import annotations

import logging

from msgspec import structs

from xllm.base.waits import WaitTable
from xllm.config.cluster import InstanceConfig, RegistryConfig
from xllm.engine.server.engine_server import EXIT_FAILED, EngineServer
from xllm.errors import ConfigError, RegistryError
from xllm.registry.open_store import open_store
from xllm.registry.publisher import Publisher
from xllm.registry.records import PublishedInstance, decode_instance, encode_record, instance_key
from xllm.registry.store import Store
from xllm.rpc.address import parse_address

log = logging.getLogger(__name__)

_ANY_HOST = ("0.0.0.0", "::", "")


def check_advertised(registry: RegistryConfig, instance: InstanceConfig, endpoint: str) -> None:
    """Refuse, before anything is loaded, to publish an address that nobody can connect to.

    Raises:
        ConfigError: the engine listens on every address and does not say under which it is reached.
    """
    if instance.advertise:
        parse_address(instance.advertise)
    elif registry.url and endpoint != "auto":
        address = parse_address(endpoint)
        if not address.path and address.host in _ANY_HOST:
            raise ConfigError(
                f"the engine would publish {address}, which is no address to connect to",
                hint="say --advertise HOST:PORT",
            )


class Membership:
    """``begin`` once the engine serves, ``leave`` before it hangs up."""

    def __init__(
        self, registry: RegistryConfig, instance: InstanceConfig, *, token: str, waits: WaitTable
    ) -> None:
        self._config = registry
        self._instance = instance
        self._token = token
        self._waits = waits
        self._store: Store | None = None
        self._publisher: Publisher | None = None
        self._record: PublishedInstance | None = None

    def begin(self, server: EngineServer) -> None:
        """Publish from now on, also if the registry comes later; nothing when none is configured."""
        if not self._config.url:
            return
        info = server.info()
        if self._instance.advertise:
            info = structs.replace(info, address=self._instance.advertise)
        # An embedded registry knows its clients; in etcd others may read, so services bring the secret themselves.
        token = "" if self._config.is_etcd else self._token
        self._record = PublishedInstance(info=info, token=token)
        key = instance_key(self._config.namespace, info.id)

        def is_mine(value: bytes) -> bool:
            try:
                return decode_instance(key, value).info.incarnation == info.incarnation
            except RegistryError:
                return True  # nonsense under our name protects nobody

        self._store = open_store(self._config, waits=self._waits)
        self._publisher = Publisher(
            self._store,
            key,
            encode_record(self._record),
            ttl_s=self._config.lease_ttl_s,
            is_mine=is_mine,
            on_clash=lambda message: server.end(f"the name is taken: {message}", EXIT_FAILED),
        )
        self._publisher.start()
        log.info("publishing as %s at %s", info.id, self._config.url)

    async def leave(self) -> None:
        """Say that this incarnation goes on purpose; bounded, and without effect the second time."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None and self._record is not None:
            await publisher.close(encode_record(structs.replace(self._record, is_leaving=True)))
        store, self._store = self._store, None
        if store is not None:
            await store.close()
