"""LayerWords: the three words every forward shares with the rest of the engine.

    layers_done    published after each layer; only grows. Health reads it, later layer-wise KV pushes do.
    layers_ready   waited for before each layer; layers below it may read their KV. Everything is ready unless a load
                   is in progress.
    interrupt      polled after each layer; a step named in it is given up, if it is interruptible.

On a GPU the words move with the launches, not with the kernels: a step's end is what synchronises.

INVARIANTS
- ``layers_done`` counts layers of all steps since start and never goes back.
- A wait for ``layers_ready`` ends at its deadline with :class:`TransferError`.
- Interrupts of steps that are over are dropped when the next step begins.
"""

from __future__ import annotations

import sys
import threading
import time

from xllm.engine.models import StepInterrupted
from xllm.errors import TransferError
from xllm.types.ids import StepId

READY_TIMEOUT_S = 30.0


class LayerWords:
    """The words of one model; implements ``LayerHooks``. Written by other threads, read by the executor's."""

    def __init__(self, *, ready_timeout_s: float = READY_TIMEOUT_S) -> None:
        self.layers_done = 0
        self._ready_timeout_s = ready_timeout_s
        self._num_ready = sys.maxsize
        self._changed = threading.Condition()
        self._interrupts: set[StepId] = set()
        self._step: StepId = -1
        self._is_interruptible = False

    def begin(self, step: StepId, *, interruptible: bool) -> None:
        """A step begins on the executor's thread."""
        self._step, self._is_interruptible = step, interruptible
        if self._interrupts:
            self._interrupts = {s for s in self._interrupts if s >= step}

    def interrupt(self, step: StepId) -> None:
        """Give up ``step`` after the layer it is in; it may not have begun yet."""
        self._interrupts = self._interrupts | {step}

    def set_layers_ready(self, num_layers: int | None) -> None:
        """Layers below ``num_layers`` may read their KV; None = all may, no load is in progress."""
        with self._changed:
            self._num_ready = sys.maxsize if num_layers is None else num_layers
            self._changed.notify_all()

    def layer_ready(self, layer: int) -> None:
        """Return when the KV of ``layer`` may be read.

        Raises:
            TransferError: it did not arrive in time.
        """
        if layer < self._num_ready:
            return
        deadline_s = time.monotonic() + self._ready_timeout_s
        with self._changed:
            while layer >= self._num_ready:
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0:
                    raise TransferError(
                        f"the KV of layer {layer} did not arrive within {self._ready_timeout_s:g} s"
                    )
                self._changed.wait(remaining_s)

    def layer_done(self, layer: int) -> None:
        """Publish progress.

        Raises:
            StepInterrupted: the step is given up.
        """
        self.layers_done += 1
        if self._interrupts and self._is_interruptible and self._step in self._interrupts:
            raise StepInterrupted(f"step {self._step} was interrupted after layer {layer}")
