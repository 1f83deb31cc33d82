"""``xllm engine [MODEL]``: one engine process, reached over its RPC endpoint."""

from __future__ import annotations

import argparse

from xllm.base.log import setup_logging
from xllm.cli.flags import add_config_flags, load_from_flags, print_config
from xllm.config.serve import ENGINE_SECTIONS
from xllm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the engine."""
    add_config_flags(parser, (*ENGINE_SECTIONS, "registry", "instance"))


def run(args: argparse.Namespace) -> int:
    """Load the configuration, then run the engine until a signal comes."""
    loaded = load_from_flags(args)
    if args.print_config:
        print_config(loaded, args.print_config)
        return 0
    config = loaded.engine()
    setup_logging(config.log, "engine")
    registry = loaded.registry()
    needless = [key for key in loaded.sources if key.startswith(("registry.", "instance."))]
    if needless and not registry.url:
        raise ConfigError(f"{needless[0]} means nothing without a registry", hint="say --registry URL")
    from xllm.launch.local import run_engine

    return run_engine(config, registry, loaded.instance())
