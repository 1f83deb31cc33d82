"""Several instances: the registry they meet at, what an instance publishes, how a service judges them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require

REGISTRY_SCHEMES = ("etcd", "tcp", "unix")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryConfig:
    """The registry: where instances publish themselves and services find them."""

    url: str = opt("", "--registry")
    """``etcd://HOST:PORT[,HOST:PORT...]``: a real etcd; ``tcp://HOST:PORT`` or ``unix:///PATH``: the embedded
    registry of a service that was started with --host-registry; empty: none."""
    token: str = opt("", "--registry-token", secret=True)
    """Shared secret of an embedded registry; needed where it listens on a network address."""
    user: str = opt("", "--registry-user")
    """User of an etcd that asks for a login."""
    password: str = opt("", "--registry-password", secret=True)
    """Password of that user."""
    ca_file: str = opt("", "--registry-ca")
    """Speak TLS to etcd and trust the authorities in this PEM file."""
    cert_file: str = opt("", "--registry-cert")
    """Certificate (PEM) that this side shows to etcd."""
    key_file: str = opt("", "--registry-key")
    """Its private key (PEM)."""
    namespace: str = opt("xllm", "--registry-namespace")
    """First part of every key: clusters with different names share a registry without meeting."""
    lease_ttl_s: float = 5.0
    """A published instance that does not renew its lease for this long is gone from the registry."""
    timeout_s: float = 3.0
    """Longest wait for one answer of the registry."""

    @property
    def is_etcd(self) -> bool:
        """Whether it is a real etcd."""
        return self.url.startswith("etcd://")

    def __post_init__(self) -> None:
        scheme, colon, _ = self.url.partition(":")
        is_known = not self.url or (bool(colon) and scheme in REGISTRY_SCHEMES)
        only_etcd = (self.user, self.password, self.ca_file, self.cert_file, self.key_file)
        require(
            (
                (
                    is_known,
                    f"url is {self.url!r}: use etcd://HOST:PORT[,HOST:PORT], tcp://HOST:PORT or unix:///PATH",
                ),
                (self.is_etcd or not any(only_etcd), "login and TLS are for etcd:// only"),
                (
                    not (self.is_etcd and self.token),
                    "token is for an embedded registry only: etcd has logins",
                ),
                (bool(self.user) == bool(self.password), "user and password: both or neither"),
                (bool(self.cert_file) == bool(self.key_file), "cert_file and key_file: both or neither"),
                (not self.cert_file or bool(self.ca_file), "cert_file needs ca_file"),
                (
                    _NAME.fullmatch(self.namespace) is not None,
                    f"namespace is {self.namespace!r}: use letters, digits, . _ -",
                ),
                (
                    2.0 <= self.lease_ttl_s <= 3600,
                    f"lease_ttl_s is {self.lease_ttl_s}: 2 to 3600 (etcd's smallest is 2)",
                ),
                (0 < self.timeout_s <= 60, f"timeout_s is {self.timeout_s}: more than 0, at most 60"),
            ),
            "registry",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceConfig:
    """What an engine publishes about itself."""

    id: str = opt("", "--instance-id")
    """Name of the instance, one of its kind in the cluster; empty: a random one."""
    advertise: str = opt("", "--advertise")
    """Address under which services reach the engine; empty: where it listens. Needed behind 0.0.0.0."""
    role: Literal["mixed"] = opt("mixed", "--role")
    """What the instance does: ``mixed`` prefills and decodes."""

    def __post_init__(self) -> None:
        require(
            (
                (
                    not self.id or _NAME.fullmatch(self.id) is not None,
                    f"id is {self.id!r}: use letters, digits, . _ -",
                ),
                (
                    not self.advertise or ":" in self.advertise,
                    f"advertise is {self.advertise!r}: use HOST:PORT or unix:/PATH",
                ),
            ),
            "instance",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """How a service looks after its instances."""

    suspect_after_s: float = 2.5
    """An instance that has been silent for this long gets no new requests."""
    lost_after_s: float = 10.0
    """After this much silence its connection is cut and its requests are given up; at once when its lease has
    ended, too."""
    forget_after_s: float = 60.0
    """An instance without lease and without connection is forgotten after this long."""

    def __post_init__(self) -> None:
        require(
            (
                (
                    0 < self.suspect_after_s <= self.lost_after_s,
                    f"suspect_after_s is {self.suspect_after_s}: more than 0, at most lost_after_s",
                ),
                (self.forget_after_s > 0, f"forget_after_s is {self.forget_after_s}: more than 0"),
            ),
            "cluster",
        )
