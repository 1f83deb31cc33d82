"""``xllm serve [MODEL]``: the HTTP edge and one engine, on this machine."""

from __future__ import annotations

import argparse

from xllm.base.log import get_logger, setup_logging
from xllm.base.resolve_here import resolve_here
from xllm.cli.flags import add_config_flags, load_from_flags, print_config
from xllm.config.serve import SERVE_SECTIONS

log = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the engine and of the edge."""
    add_config_flags(parser, SERVE_SECTIONS)


def run(args: argparse.Namespace) -> int:
    """Load the configuration, check it on this machine before anything is started, then serve until a
    signal."""
    loaded = load_from_flags(args)
    if args.print_config:
        print_config(loaded, args.print_config)
        return 0
    config = loaded.serve()
    setup_logging(config.engine.log, "serve")
    for warning in resolve_here(config.engine, sources=loaded.sources).warnings:
        log.warning("%s", warning)
    from xllm.launch.local import serve

    return serve(config)
