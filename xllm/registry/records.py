"""What lies in a store: keys and records, read with suspicion since anybody with access may have written them."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from xllm.errors import RegistryError
from xllm.types.ids import InstanceId
from xllm.types.instance import InstanceInfo


class PublishedInstance(Struct, frozen=True, kw_only=True):
    """Value of an instance's key. An engine that leaves on purpose writes ``is_leaving`` before its key goes."""

    info: InstanceInfo
    token: str = ""
    """Secret of its RPC: only in an embedded registry, whose clients have proved themselves or are of this machine."""
    is_leaving: bool = False


class PublishedService(Struct, frozen=True, kw_only=True):
    """Value of a service replica's key."""

    id: str
    url: str
    pid: int = 0
    version: str = ""


def instances_prefix(namespace: str) -> str:
    """Under it, one key per instance id."""
    return f"/{namespace}/instances/"


def instance_key(namespace: str, instance_id: InstanceId) -> str:
    """The key of an instance."""
    return instances_prefix(namespace) + instance_id


def services_prefix(namespace: str) -> str:
    """Under it, one key per service replica."""
    return f"/{namespace}/services/"


def leader_key(namespace: str, duty: str) -> str:
    """The key whose holder has a duty."""
    return f"/{namespace}/leaders/{duty}"


def encode_record(record: PublishedInstance | PublishedService) -> bytes:
    """JSON, so that a person can read it with any tool."""
    return msgspec.json.encode(record)


def decode_instance(key: str, value: bytes) -> PublishedInstance:
    """The record under ``key``.

    Raises:
        RegistryError: it is none, or it is filed under another name than its own.
    """
    try:
        record = msgspec.json.decode(value, type=PublishedInstance)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RegistryError(f"registry key {key!r} holds no instance: {exc}") from exc
    name = key.rpartition("/")[2]
    if record.info.id != name:
        raise RegistryError(f"registry key {key!r} holds the record of {record.info.id!r}")
    return record


def decode_service(key: str, value: bytes) -> PublishedService:
    """The record under ``key``; raises RegistryError when it is none."""
    try:
        return msgspec.json.decode(value, type=PublishedService)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RegistryError(f"registry key {key!r} holds no service: {exc}") from exc
