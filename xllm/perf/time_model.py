"""TimeModel: the port through which brain and policies ask how long a step lasts, and tell how long it lasted."""

from __future__ import annotations

from typing import Protocol

from xllm.perf.step_time import StepShape
from xllm.types.instance import StepCosts


class TimeModel(Protocol):
    """See the module; all times are seconds."""

    @property
    def is_known(self) -> bool:
        """Whether predictions mean anything; without, features that need them are off."""
        ...

    @property
    def error(self) -> float:
        """Median |relative error| of recent predictions, each made before its step was measured; 0: none yet."""
        ...

    def wants_sample(self) -> bool:
        """Whether the step that is planned now should be observed; asked once per step."""
        ...

    def predict(self, shape: StepShape) -> float:
        """How long a step of this shape will last."""
        ...

    def observe(self, shape: StepShape, measured_s: float) -> None:
        """A step of this shape lasted ``measured_s``."""
        ...

    def marginal_s(self, base: StepShape, start: int, count: int) -> float:
        """How long a step lasts that is ``base`` and ``count`` more tokens of one row that starts at ``start``."""
        ...

    def costs(self, num_rows: int) -> StepCosts | None:
        """The model in a form that can be published, at about ``num_rows`` tokens per step; None: it knows nothing."""
        ...


class NullTimeModel:
    """Knows nothing; the off switch."""

    is_known = False
    error = 0.0

    def wants_sample(self) -> bool:
        """No."""
        return False

    def predict(self, shape: StepShape) -> float:
        """No time."""
        return 0.0

    def observe(self, shape: StepShape, measured_s: float) -> None:
        """Forget it."""

    def marginal_s(self, base: StepShape, start: int, count: int) -> float:
        """No time."""
        return 0.0

    def costs(self, num_rows: int) -> StepCosts | None:
        """None."""
        return None
