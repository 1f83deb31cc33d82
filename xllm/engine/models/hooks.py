"""What happens between layers: progress, interruption, loads and pushes of KV by layer."""

from __future__ import annotations

from typing import Protocol


class StepInterrupted(Exception):
    """The step was given up between two layers; nothing of it counts."""


class LayerHooks(Protocol):
    """One call before and one after each layer; both are quick unless they wait for bytes of that layer."""

    def layer_ready(self, layer: int) -> None:
        """Return when the KV of the layer may be read (loads in progress have arrived)."""

    def layer_done(self, layer: int) -> None:
        """Publish progress and poll the interrupt word.

        Raises:
            StepInterrupted: the step is given up.
        """


class NullHooks:
    """Nothing watches."""

    def layer_ready(self, layer: int) -> None:
        """At once."""

    def layer_done(self, layer: int) -> None:
        """Unnoticed."""
