"""``xllm doctor [MODEL]``: the machine, versions, and what ``xllm serve`` with the same flags would
choose."""

from __future__ import annotations

import argparse
import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version

from xllm import __version__
from xllm.base.machine import gather_machine_facts, has_cpu_only_torch, query_gpu_facts
from xllm.base.openmp import prepare_openmp
from xllm.base.resolve_here import resolve_here
from xllm.cli.flags import add_config_flags, load_from_flags
from xllm.config.api import ApiConfig
from xllm.config.load import Loaded
from xllm.config.machine_facts import MachineFacts
from xllm.config.memory_plan import format_memory
from xllm.config.resolved import ResolvedEngineConfig
from xllm.config.schema import format_bytes
from xllm.config.serve import SERVE_SECTIONS
from xllm.config.threads import format_cpu_list
from xllm.errors import XllmError

CORE = ("torch", "numpy", "safetensors", "tokenizers", "msgspec", "fastapi", "uvicorn", "uvloop", "httptools")
OPTIONAL = (
    ("triton", "GPU kernels", "cuda"),
    ("aetcd", "clusters", "etcd"),
    ("transformers", "numeric tests", "dev"),
    ("openai", "end-to-end tests", "dev"),
)
_NOTABLE_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The same flags as ``xllm serve``."""
    add_config_flags(parser, SERVE_SECTIONS)


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when ``xllm serve`` with these flags should start, else 1."""
    loaded = load_from_flags(args)
    problems: list[str] = []
    for title, lines in (
        ("machine", _machine_lines(gather_machine_facts(query_gpu_facts()))),
        ("versions", _version_lines(problems)),
        ("optional", _optional_lines()),
        ("would be chosen", _choice_lines(loaded, problems)),
        ("address", _address_lines(loaded.sections["api"], problems)),
    ):
        print(f"{title}:")
        print("\n".join(f"  {line}" for line in lines))
    for problem in problems:
        print(f"problem: {problem}")
    print("ready to serve" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def _machine_lines(machine: MachineFacts) -> list[str]:
    limit = machine.memory_limit_bytes
    nodes = {core.node for core in machine.cores}
    allowed = format_cpu_list([cpu for core in machine.cores for cpu in core.cpus])
    flags = [flag for flag in _NOTABLE_FLAGS if flag in machine.cpu_flags]
    gpu = machine.gpu
    return [
        f"system   {platform.system()} {platform.release()} {platform.machine()}",
        f"cpu      {machine.cpu_name or 'unknown'}, {machine.num_cores} cores ({', '.join(flags) or 'no flags'})",
        f"cpus     {allowed or 'unknown'} may be used, of {max(len(nodes), 1)} NUMA node(s)",
        f"memory   {format_bytes(machine.memory_available_bytes)} available"
        f" of {format_bytes(machine.memory_total_bytes)}"
        + (f", container limit {format_bytes(limit)}" if limit is not None else ""),
        f"gpu      {gpu.name}, {format_bytes(gpu.free_bytes)} free of {format_bytes(gpu.total_bytes)}"
        if gpu
        else "gpu      none" + (" that this CPU build of torch could use" if has_cpu_only_torch() else ""),
    ]


def _version_lines(problems: list[str]) -> list[str]:
    lines = [f"xllm {__version__}, python {platform.python_version()}"]
    found = {name: _installed(name) for name in CORE}
    lines.append(", ".join(f"{name} {number or 'MISSING'}" for name, number in found.items()))
    problems += [
        f"{name} is not installed (hint: run scripts/setup)" for name, number in found.items() if not number
    ]
    return lines


def _optional_lines() -> list[str]:
    lines = []
    for name, use, extra in OPTIONAL:
        number = _installed(name)
        lines.append(f"{name:<13} {number or f'not installed: pip install xllm[{extra}]'} ({use})")
    return lines


def _choice_lines(loaded: Loaded, problems: list[str]) -> list[str]:
    try:
        resolved = resolve_here(loaded.engine(), sources=loaded.sources)
    except XllmError as error:
        problems.append(error.public_message)
        return ["nothing: see the problem below"]
    return [
        f"model    {resolved.model}: {resolved.spec.architecture},"
        f" {resolved.spec.num_params / 1e6:.1f} M parameters",
        f"device   {resolved.device}, {resolved.dtype}, {resolved.num_threads} threads",
        f"threads  {_thread_line(resolved)}",
        f"OpenMP   {_openmp_line(resolved)}",
        f"length   {resolved.max_model_len} tokens, {resolved.max_num_seqs} sequences at once,"
        f" {resolved.max_num_batched_tokens} tokens per step",
        f"KV       {resolved.num_blocks} blocks of {resolved.block_size} tokens,"
        f" {format_bytes(resolved.memory.kv_bytes)}",
        f"memory   {format_memory(resolved.memory)}",
        *(f"warning  {text}" for text in resolved.warnings),
    ]


def _thread_line(resolved: ResolvedEngineConfig) -> str:
    threads = resolved.threads
    if "runner.cpu_set" in resolved.reasons:
        return resolved.reasons["runner.cpu_set"].reason
    if threads.step_cpus:
        return f"pinned to CPUs {format_cpu_list(threads.step_cpus)}"
    return f"on CPUs {format_cpu_list(threads.process_cpus)}" if threads.process_cpus else "not pinned"


def _openmp_line(resolved: ResolvedEngineConfig) -> str:
    environ = dict(os.environ)
    said = prepare_openmp(resolved.num_threads, environ, cpus=resolved.threads.step_cpus)
    names = [name for name in sorted(environ) if name in said or environ[name] != os.environ.get(name)]
    return ", ".join(f"{name}={environ[name]}" + (" (environment)" if name in said else "") for name in names)


def _address_lines(api: ApiConfig, problems: list[str]) -> list[str]:
    is_open = api.host not in ("127.0.0.1", "localhost", "::1")
    lines = [f"http://{api.host}:{api.port}, {'an API key is asked for' if api.api_key else 'no API key'}"]
    if is_open and not api.api_key:
        lines.append("warning: open to the network without an API key")
    family = socket.AF_INET6 if ":" in api.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((api.host, api.port))
        except OSError as error:
            problems.append(f"cannot listen on {api.host}:{api.port}: {error.strerror} (hint: use --port)")
    return lines


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
