"""``xllm serve [MODEL]``: the HTTP edge and one engine, or several supervised ones, on this machine."""

from __future__ import annotations

import argparse

from xllm.base.affinity import set_affinity
from xllm.base.log import get_logger, setup_logging
from xllm.base.phases import Phases, process_age_s
from xllm.base.resolve_here import resolve_here
from xllm.cli.flags import add_config_flags, load_from_flags, print_config
from xllm.config.serve import SERVE_SECTIONS
from xllm.errors import ConfigError

log = get_logger(__name__)

MAX_INSTANCES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the engine and of the edge."""
    parser.add_argument(
        "--instances",
        type=int,
        metavar="INT",
        help="run this many engines, start them again when they die, and host a registry for more",
    )
    add_config_flags(parser, (*SERVE_SECTIONS, "registry", "cluster"))


def run(args: argparse.Namespace) -> int:
    """Load the configuration, check it on this machine before anything is started, then serve until a
    signal."""
    phases = Phases("edge")
    phases.add("interpreter and own imports", process_age_s())
    loaded = load_from_flags(args)
    if args.print_config:
        print_config(loaded, args.print_config)
        return 0
    config = loaded.serve()
    setup_logging(config.engine.log, "serve")
    with phases.measure("config"):
        resolved = resolve_here(config.engine, sources=loaded.sources)
        for warning in resolved.warnings:
            log.warning("%s", warning)
    is_cluster = any(key.startswith(("registry.", "cluster.")) for key in loaded.sources)
    if args.instances is None and not is_cluster:
        from xllm.launch.starting_engine import start_engine

        starting = start_engine(config.engine)
        try:
            if (
                resolved.threads.other_cpus
            ):  # after the thread that starts the engine, which must not inherit it
                set_affinity(resolved.threads.other_cpus)
            with phases.measure("imports of the edge"):
                from xllm.launch.local import serve
        except BaseException:
            starting.abandon()
            raise
        return serve(config, starting, phases)
    num_instances = 1 if args.instances is None else args.instances
    if not 1 <= num_instances <= MAX_INSTANCES:
        raise ConfigError(f"--instances is {num_instances}", hint=f"use 1 to {MAX_INSTANCES}")
    from xllm.launch.cluster import serve_cluster

    return serve_cluster(config, loaded.registry(), loaded.cluster(), num_instances=num_instances)
