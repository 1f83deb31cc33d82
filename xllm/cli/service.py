"""``xllm service --engine ENDPOINT [MODEL]``: the HTTP edge over engines that run already."""

from __future__ import annotations

import argparse

from xllm.base.log import setup_logging
from xllm.cli.flags import add_config_flags, load_from_flags, print_config
from xllm.config.serve import SERVE_SECTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The edge's flags, the model (for its tokenizer) and where the engines are."""
    add_config_flags(parser, SERVE_SECTIONS)
    parser.add_argument(
        "--engine",
        action="append",
        required=True,
        metavar="ENDPOINT",
        help="endpoint of a running engine: unix:/PATH or HOST:PORT; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Load the configuration, then serve until a signal comes."""
    loaded = load_from_flags(args)
    if args.print_config:
        print_config(loaded, args.print_config)
        return 0
    config = loaded.serve()
    setup_logging(config.engine.log, "service")
    from xllm.launch.local import run_service

    return run_service(config, tuple(args.engine))
