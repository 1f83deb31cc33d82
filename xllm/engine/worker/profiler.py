"""TorchProfiler: traces every thread of the engine, kernels included, into a Chrome trace file."""

from __future__ import annotations

import itertools
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from xllm.errors import InvalidRequest

_LOG = logging.getLogger(__name__)


class TorchProfiler:
    """One trace at a time. Starting and, above all, writing take long, so an own thread does both."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="xllm-profiler")
        self._numbers = itertools.count(1)
        self._profile: Any = None
        self._is_running = False

    def start(self) -> None:
        """Begin a trace; raises InvalidRequest when one is running."""
        if self._is_running:
            raise InvalidRequest("the profiler is already running", hint="stop it first")
        self._is_running = True
        self._thread.submit(self._begin).add_done_callback(_log_failure)

    def stop(self) -> None:
        """End the trace and write it; the log says where. Raises InvalidRequest when none is running."""
        if not self._is_running:
            raise InvalidRequest("the profiler is not running", hint="start it first")
        self._is_running = False
        path = self._directory / f"xllm-{os.getpid()}-{next(self._numbers)}.trace.json"
        self._thread.submit(self._write, path).add_done_callback(_log_failure)

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        # Without this only the calling thread would be traced, and steps run on the executor's.
        everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        self._profile = torch.profiler.profile(activities=activities, experimental_config=everywhere)
        self._profile.start()
        _LOG.info("profiling")

    def _write(self, path: Path) -> None:
        profile, self._profile = self._profile, None
        if profile is None:
            return  # it never began, which the log has said
        profile.stop()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        profile.export_chrome_trace(str(unfinished))
        unfinished.replace(path)
        _LOG.info("profile written to %s", path.resolve())


def _log_failure(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        _LOG.error("the profiler failed: %s", error, exc_info=error)
