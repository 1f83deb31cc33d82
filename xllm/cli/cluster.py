"""``xllm cluster status|drain``: looks at the instances of a registry, and takes one out."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

from xllm.base.log import setup_logging
from xllm.cli.flags import add_config_flags, load_from_flags
from xllm.config.serve import REGISTRY_SECTIONS
from xllm.errors import ConfigError

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the registry's flags."""
    parser.add_argument(
        "action", choices=("status", "drain"), help="show the cluster, or take an instance out"
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
        raise ConfigError("drain needs the name of one instance, status none", hint="xllm cluster drain ID")
    from xllm.launch.cluster_admin import drain_instance, gather_status

    if args.action == "status":
        found = asyncio.run(gather_status(loaded.registry(), args.rpc_token))
        print(json.dumps(found, indent=2) if args.json else format_status(found))
        return 0 if all(row["state"] not in ("lost", "unreadable") for row in found["instances"]) else 1

    def show(num_unfinished: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{num_unfinished} requests in flight \x1b[K")

    num_ended = asyncio.run(
        drain_instance(
            loaded.registry(),
            args.instance,
            token=args.rpc_token,
            timeout_s=args.drain_timeout,
            on_progress=show,
        )
    )
    result = {"instance": args.instance, "num_ended": num_ended}
    note = f" ({num_ended} requests had to be ended)" if num_ended else ""
    print(json.dumps(result) if args.json else f"{args.instance} has drained and left{note}")
    return 0


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


def _table(names: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return f"no {names[0].lower()} is published"
    cells = [names] + [["-" if value in (None, "") else str(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
