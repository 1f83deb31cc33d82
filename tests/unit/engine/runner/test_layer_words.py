from __future__ import annotations

import threading

import pytest

from xllm.engine.models import StepInterrupted
from xllm.engine.runner.layer_words import LayerWords
from xllm.errors import TransferError


def test_layers_done_only_grows() -> None:
    words = LayerWords()
    for step in range(3):
        words.begin(step, interruptible=True)
        for layer in range(4):
            words.layer_ready(layer)
            words.layer_done(layer)
    assert words.layers_done == 12


def test_an_interrupt_may_come_before_its_step_and_does_not_reach_others() -> None:
    words = LayerWords()
    words.interrupt(2)
    words.begin(1, interruptible=True)
    words.layer_done(0)
    words.begin(2, interruptible=True)
    with pytest.raises(StepInterrupted):
        words.layer_done(0)
    words.begin(3, interruptible=True)
    words.layer_done(0)
    assert not words._interrupts


def test_a_layer_waits_for_its_bytes() -> None:
    words = LayerWords()
    words.set_layers_ready(1)
    words.layer_ready(0)
    passed = threading.Event()

    def wait() -> None:
        words.layer_ready(1)
        passed.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not passed.wait(0.05)
    words.set_layers_ready(None)
    assert passed.wait(100)
    thread.join(100)


def test_bytes_that_never_come_are_a_transfer_error() -> None:
    words = LayerWords(ready_timeout_s=0.01)
    words.set_layers_ready(0)
    with pytest.raises(TransferError, match="layer 0"):
        words.layer_ready(0)
