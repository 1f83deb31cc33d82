from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xllm.base.phases import Phases, Span, format_spans, measured, parse_spans, process_age_s


def test_a_line_says_what_it_was_made_of() -> None:
    spans = [Span("engine", "weights read and packed", 12.25, 3.5), Span("edge", "config", 10.0, 0.125)]
    line = format_spans(spans)
    assert line == "edge/config 0.000+0.125, engine/weights read and packed 2.250+3.500"
    assert parse_spans("12:00:01.000 I serve: " + line) == [
        Span("edge", "config", 0.0, 0.125),
        Span("engine", "weights read and packed", 2.25, 3.5),
    ]
    assert parse_spans(format_spans([])) == []


def test_a_phase_that_raises_is_none() -> None:
    phases = Phases("edge")
    with phases.measure("good"):
        pass
    with pytest.raises(KeyError), phases.measure("bad"):
        raise KeyError
    with measured("own", phases.add):
        pass
    assert [span.phase for span in phases.spans] == ["good", "own"]
    assert all(span.begin_s <= time.monotonic() and span.seconds >= 0 for span in phases.spans)


def test_the_age_counts_from_the_start_of_the_process() -> None:
    code = "import time; time.sleep(0.2); from xllm.base.phases import process_age_s; print(process_age_s())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    assert 0.2 - 1.5 / os.sysconf("SC_CLK_TCK") < float(done.stdout) < 60


def test_a_system_that_does_not_say_gives_no_age(tmp_path: Path) -> None:
    assert process_age_s(tmp_path) == 0.0


def test_what_a_script_did_before_its_exec_does_not_count() -> None:
    code = (
        "import os, time; from xllm.base.phases import EXEC_AT, process_age_s\n"
        "os.environ[EXEC_AT] = f'{time.time() - 30:.6f}'\n"
        "print(process_age_s(), EXEC_AT in os.environ, process_age_s())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    said, is_left, own = done.stdout.split()
    assert 30 <= float(said) < 90 and is_left == "False" and float(own) < 30
