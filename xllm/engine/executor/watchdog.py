"""Hole for whoever wants to know that a step began and ended; the server's health check reads it."""

from __future__ import annotations

from typing import Protocol

from xllm.types.ids import StepId


class Watchdog(Protocol):
    """Called from the executor's thread around every step; must return at once and never raise."""

    def step_began(self, step: StepId, num_tokens: int) -> None:
        """A step is about to run."""

    def step_ended(self, step: StepId, *, failed: bool) -> None:
        """It ran, or failed."""


class NullWatchdog:
    """Nobody watches."""

    def step_began(self, step: StepId, num_tokens: int) -> None:
        """Do nothing."""

    def step_ended(self, step: StepId, *, failed: bool) -> None:
        """Do nothing."""
