"""What a benchmark ran on, printed and stored with every result: machine, versions, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe(*local_flags: str) -> dict[str, object]:
    """Machine, versions and command.

    Args:
        local_flags: flags whose values are directories of this machine, which say nothing about the result.
    """
    return {
        "command": _command(sys.argv, ("--json", "--output-json", *local_flags)),
        "machine": f"{_cpu_name()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "xllm": _revision(),
        "packages": {name: _version(name) for name in ("torch", "numpy", "transformers", "openai")},
        "load_average": os.getloadavg()[0],
    }


def _command(argv: Sequence[str], local_flags: Sequence[str]) -> str:
    """What was typed, without local flags whose value is an absolute path."""
    script = Path(argv[0])
    is_ours = script.name == "xllm" or script.parent.name == "cli"
    words = ["xllm"] if is_ours else ["python", argv[0]]
    arguments = iter(argv[1:])
    for word in arguments:
        if word not in local_flags:
            words.append(word)
        elif not (value := next(arguments, "")).startswith("/"):
            words += [word, value]
    return " ".join(words)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _revision() -> str:
    """The commit of a checkout, or the version that is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return _version("xllm")
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return _version("xllm")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
