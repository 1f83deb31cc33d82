from __future__ import annotations

import io
import os

from xllm.launch.log_pump import LogPump
from xllm.launch.weights_bar import WeightsBar


def test_lines_reach_the_sink_and_the_last_are_remembered() -> None:
    reading, writing = os.pipe()
    lines: list[str] = []
    pump = LogPump(os.fdopen(reading, "r"), lines.append, num_tail_lines=3)
    with os.fdopen(writing, "w") as pipe:
        pipe.writelines(f"line {i}\n" for i in range(10))
        pipe.write("no newline")
    pump.join(100)
    assert lines == [*(f"line {i}" for i in range(10)), "no newline"]
    assert pump.tail() == "line 8\nline 9\nno newline"


def test_a_broken_sink_does_not_block_the_child() -> None:
    reading, writing = os.pipe()

    def broken(line: str) -> None:
        raise OSError("our stderr is closed")

    pump = LogPump(os.fdopen(reading, "r"), broken)
    with os.fdopen(writing, "w") as pipe:
        for i in range(20_000):  # far more than a pipe holds
            pipe.write(f"line {i}\n")
    pump.join(100)
    assert pump.tail().endswith("line 19999")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_for_terminals_and_cleans_up() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    with WeightsBar(pipe, quiet_s=0.0) as bar:
        bar.update(1, 2)
    assert pipe.getvalue() == ""
    with WeightsBar(terminal, quiet_s=0.0) as bar:
        bar.update(512 * 1024, 1024 * 1024)
        assert "512.00 KiB of 1.00 MiB" in terminal.getvalue()
        assert "[###############               ]" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    quick = Terminal()
    with WeightsBar(quick, quiet_s=100.0) as bar:
        bar.update(1, 2)
    assert quick.getvalue() == ""
