"""Late inputs of a step: masks that arrive after the step was submitted, waited for with a deadline.

INVARIANTS
- A mask is kept until its step takes it or ``forget`` drops it; steps that never take one leave nothing behind.
- ``take`` returns within ``timeout_s``, with the mask or with :class:`DeadlineExceeded`; ``close`` ends every wait.
"""

from __future__ import annotations

import threading
import time

from xllm.errors import DeadlineExceeded, InstanceLost
from xllm.types.batch import StepMask
from xllm.types.ids import StepId


class MaskInbox:
    """Masks by step; put from the brain's thread, taken from the executor's."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._masks: dict[StepId, StepMask] = {}
        self._last_forgotten: StepId = -1
        self._is_closed = False

    def put(self, step: StepId, mask: StepMask) -> None:
        """Store the mask of a step and wake its waiter; a mask for a step already over is dropped."""
        with self._ready:
            if step > self._last_forgotten:
                self._masks[step] = mask
                self._ready.notify_all()

    def take(self, step: StepId, timeout_s: float) -> StepMask:
        """The mask of ``step``, waiting up to ``timeout_s``.

        Raises:
            DeadlineExceeded: no mask came in time.
            InstanceLost: the inbox was closed meanwhile.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._ready:
            while step not in self._masks:
                if self._is_closed:
                    raise InstanceLost(f"the executor closed before the mask of step {step} came")
                remaining_s = deadline_s - time.monotonic()
                if remaining_s <= 0 or not self._ready.wait(remaining_s):
                    if step in self._masks:
                        break
                    raise DeadlineExceeded(f"the mask of step {step} did not arrive within {timeout_s:g} s")
            return self._masks.pop(step)

    def forget(self, step: StepId) -> None:
        """The step is over: drop what it and older ones did not take. Steps end in order."""
        with self._ready:
            self._last_forgotten = max(self._last_forgotten, step)
            for old in [s for s in self._masks if s <= step]:
                del self._masks[old]

    def close(self) -> None:
        """No mask will come any more: wake whoever waits for one."""
        with self._ready:
            self._is_closed = True
            self._ready.notify_all()

    def __len__(self) -> int:
        return len(self._masks)
