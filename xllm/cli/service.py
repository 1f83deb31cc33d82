"""``xllm service --registry URL | --engine ENDPOINT [MODEL]``: the HTTP edge over engines that run elsewhere."""

from __future__ import annotations

import argparse

from xllm.base.log import setup_logging
from xllm.cli.flags import add_config_flags, load_from_flags, print_config
from xllm.config.serve import SERVE_SECTIONS
from xllm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The edge's flags, the model (for its tokenizer) and where the engines are."""
    add_config_flags(parser, (*SERVE_SECTIONS, "registry", "cluster"))
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="ENDPOINT",
        help="endpoint of a running engine: unix:/PATH or HOST:PORT; may be repeated",
    )
    parser.add_argument(
        "--host-registry",
        action="store_true",
        help="run the registry in this process, at the address of --registry (tcp:// or unix://)",
    )


def run(args: argparse.Namespace) -> int:
    """Load the configuration, then serve until a signal comes."""
    loaded = load_from_flags(args)
    if args.print_config:
        print_config(loaded, args.print_config)
        return 0
    config = loaded.serve()
    setup_logging(config.engine.log, "service")
    registry = loaded.registry()
    if bool(args.engine) == bool(registry.url):
        raise ConfigError(
            "a service needs either engines or a registry", hint="use --registry URL or --engine"
        )
    if registry.url:
        from xllm.launch.cluster import run_registered_service

        return run_registered_service(config, registry, loaded.cluster(), hosts_registry=args.host_registry)
    needless = [key for key in loaded.sources if key.startswith(("registry.", "cluster."))]
    if needless or args.host_registry:
        name = needless[0] if needless else "--host-registry"
        raise ConfigError(f"{name} means nothing without a registry", hint="say --registry URL")
    from xllm.launch.local import run_service

    return run_service(config, tuple(args.engine))
