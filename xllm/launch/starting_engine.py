"""StartingEngine: an engine that starts on a thread, so that others can get ready meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from xllm.base.affinity import set_affinity, usable_cpus
from xllm.config.serve import EngineConfig
from xllm.launch.engine_process import EngineProcess
from xllm.launch.weights_bar import WeightsBar


def start_engine(config: EngineConfig) -> StartingEngine:
    """Begin to start an engine, with a progress bar while it reads its weights.

    It runs on the CPUs of the caller as they are now; ``start_again`` starts another one there.
    """
    cpus = usable_cpus()

    def start() -> EngineProcess:
        with WeightsBar(sys.stderr) as bar:
            return EngineProcess.start(config, on_weights=bar.update)

    def start_again() -> EngineProcess:
        if cpus:  # the caller may have left some of them to the engine; a new process would inherit that
            set_affinity(cpus)
        return EngineProcess.start(config)

    return StartingEngine(start, start_again)


class StartingEngine:
    """``wait`` for it, or ``abandon`` it."""

    def __init__(
        self, start: Callable[[], EngineProcess], start_again: Callable[[], EngineProcess] | None = None
    ) -> None:
        """``start_again``, where it is another way, starts a successor; each runs on a thread of its own."""
        self._start = start
        self.start_again = start_again or start
        self._process: EngineProcess | None = None
        self._is_abandoned = False
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        # A daemon: when the main thread fails or is interrupted, the process ends, and its engine with it.
        self._thread = threading.Thread(target=self._run, name="xllm-engine-start", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` returns at once."""
        return not self._thread.is_alive()

    def wait(self) -> EngineProcess:
        """The ready engine, or whatever its start raised."""
        self._thread.join()  # bounded by the start's own deadline
        if self._error is not None:
            raise self._error
        assert self._process is not None
        return self._process

    def abandon(self) -> None:
        """Nobody waits for it any more: it is closed when it is ready."""
        with self._lock:
            self._is_abandoned = True
        if self._process is not None:
            self._process.close()

    def _run(self) -> None:
        try:
            process = self._start()
        except BaseException as exc:
            self._error = exc
            return
        with self._lock:
            self._process = process
        if self._is_abandoned:
            process.close()
