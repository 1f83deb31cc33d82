"""``xllm cluster status|roles|drain``: looks at the instances of a registry, and takes one out."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from xllm.base.log import setup_logging
from xllm.cli.flags import add_config_flags, load_from_flags
from xllm.config.serve import REGISTRY_SECTIONS
from xllm.errors import ConfigError

if TYPE_CHECKING:
    from xllm.config.cluster import RegistryConfig
    from xllm.launch.cluster_admin import DrainProgress

_COLUMNS = (
    ("INSTANCE", "id"),
    ("STATE", "state"),
    ("MODEL", "model"),
    ("REVISION", "revision"),
    ("ROLE", "role"),
    ("RUNNING", "num_running"),
    ("WAITING", "num_waiting"),
    ("BLOCKS", "blocks"),
    ("ADDRESS", "address"),
    ("MESSAGE", "message"),
)
_LINE_EVERY_S = 2.0
MAX_DRAIN_S = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the registry's flags."""
    parser.add_argument(
        "action",
        choices=("status", "roles", "drain"),
        help="show the instances, show who does what, or take an instance out",
    )
    parser.add_argument("instance", nargs="?", help="which instance to drain")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=60.0,
        metavar="FLOAT",
        help="seconds that requests in flight may take to finish [60]",
    )
    parser.add_argument(
        "--migrate-after",
        type=float,
        default=10.0,
        metavar="FLOAT",
        help="seconds after which requests that still run go on at another instance, where one takes them [10]",
    )
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until the instance has finished and left; without, only stop its admissions [wait]",
    )
    parser.add_argument(
        "--rpc-token",
        default=os.environ.get("XLLM_RPC_TOKEN", ""),
        metavar="TEXT",
        help="secret of the engines, where the registry does not hold it (XLLM_RPC_TOKEN)",
    )
    add_config_flags(parser, REGISTRY_SECTIONS)


def run(args: argparse.Namespace) -> int:
    """Do it; status 1 when an instance that is published does not answer."""
    loaded = load_from_flags(args)
    setup_logging(loaded.sections["log"], "cluster")
    if (args.action == "drain") != (args.instance is not None):
        raise ConfigError(
            "drain needs the name of one instance, status and roles none", hint="xllm cluster drain ID"
        )
    if args.action != "drain" and not args.wait:
        raise ConfigError(f"--no-wait means nothing to {args.action}", hint="leave it away")
    for flag, seconds in (("--drain-timeout", args.drain_timeout), ("--migrate-after", args.migrate_after)):
        if not 0 <= seconds <= MAX_DRAIN_S:
            raise ConfigError(f"{flag} is {seconds:g}", hint=f"use 0 to {MAX_DRAIN_S} seconds")
    if args.action == "drain":
        return _drain(loaded.registry(), args)
    from xllm.launch.cluster_admin import gather_status, group_roles

    found = asyncio.run(gather_status(loaded.registry(), args.rpc_token))
    if args.action == "roles":
        roles = group_roles(found)
        print(json.dumps(roles, indent=2) if args.json else format_roles(roles))
    else:
        print(json.dumps(found, indent=2) if args.json else format_status(found))
    return 0 if all(row["state"] not in ("lost", "unreadable") for row in found["instances"]) else 1


def _drain(registry: RegistryConfig, args: argparse.Namespace) -> int:
    from xllm.launch.cluster_admin import drain_instance

    progress = _Progress(args.instance)
    found = asyncio.run(
        drain_instance(
            registry,
            args.instance,
            token=args.rpc_token,
            timeout_s=args.drain_timeout,
            migrate_after_s=args.migrate_after,
            waits=args.wait,
            on_progress=progress.show,
        )
    )
    progress.end()
    num, num_migrated = found.num_unfinished, found.num_migrated
    result: dict[str, Any] = {"instance": args.instance, "num_migrated": num_migrated}
    if not args.wait:
        result["num_unfinished"] = num
        said = f"{args.instance} takes no new requests; {num} are in flight; drain it again to end it"
    else:
        result["num_ended"] = num
        notes = [f"{num_migrated} requests went on elsewhere"] if num_migrated else []
        notes += [f"{num} requests had to be ended"] if num else []
        said = f"{args.instance} has drained and left" + (f" ({', '.join(notes)})" if notes else "")
    print(json.dumps(result) if args.json else said)
    return 0


class _Progress:
    """How far a drain is, on stderr: in place on a terminal, else a line now and then."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._shown_s = -_LINE_EVERY_S
        self._has_line = False

    def show(self, progress: DrainProgress) -> None:
        """Called some times a second."""
        moved = f", {progress.num_migrated} went on elsewhere" if progress.num_migrated else ""
        text = f"{self._instance}: {progress.num_unfinished} requests in flight{moved}, {progress.left_s:.0f} s left"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text}\x1b[K")
            self._has_line = True
        elif time.monotonic() - self._shown_s >= _LINE_EVERY_S:
            self._shown_s = time.monotonic()
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the terminal's line."""
        if self._has_line:
            sys.stderr.write("\r\x1b[K")


def format_status(found: dict[str, list[dict[str, Any]]]) -> str:
    """Tables for people."""
    rows = [
        {**row, "blocks": f"{row['blocks_used']}/{row['blocks_total']}" if row.get("blocks_total") else None}
        for row in found["instances"]
    ]
    parts = [_table([name for name, _ in _COLUMNS], [[row.get(key) for _, key in _COLUMNS] for row in rows])]
    if found["services"]:
        cells = [[row["id"], row["url"], row.get("pid")] for row in found["services"]]
        parts.append(_table(["SERVICE", "URL", "PID"], cells))
    if found["leaders"]:
        parts.append(_table(["DUTY", "LEADER"], [[row["duty"], row["holder"]] for row in found["leaders"]]))
    return "\n\n".join(parts)


def format_roles(roles: dict[str, list[dict[str, Any]]]) -> str:
    """Instances by group and role, and who leads."""
    cells = [
        [group["model"], group["revision"], row["role"], row["id"], row["state"]]
        for group in roles["groups"]
        for row in group["instances"]
    ]
    parts = [_table(["MODEL", "REVISION", "ROLE", "INSTANCE", "STATE"], cells)]
    leaders = [[row["duty"], row["holder"], row["url"]] for row in roles["leaders"]]
    if leaders:
        parts.append(_table(["DUTY", "LEADER", "URL"], leaders))
    return "\n\n".join(parts)


def _table(names: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return f"no {names[0].lower()} is published"
    cells = [names] + [["-" if value in (None, "") else str(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
