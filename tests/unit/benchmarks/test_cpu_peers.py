"""The comparison's parts: what they count, keep and choose. No peer is needed."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu_peers import record, report
from benchmarks.cpu_peers.capacity import GRID, Limits, RateSearch, limits_of, run_capacity
from benchmarks.cpu_peers.client import Answer, AnswerError, read_answer
from benchmarks.cpu_peers.fleet import Fleet, metrics
from benchmarks.cpu_peers.machine import busy_s, own_s, pss_mb, state, tree
from benchmarks.cpu_peers.rounds import Budget, Targets, run_starts, run_workload
from benchmarks.cpu_peers.server import Server, ServerFailed
from benchmarks.cpu_peers.systems import OURS, PEERS, Launch, Settings, launch, llamacpp_slots
from benchmarks.cpu_peers.workloads import WORKLOADS, Workload, make_prompts, poisson_times_s, select
from xllm.bench.startup import free_port

ROOT = Path(__file__).resolve().parents[3]


def event(text: str | None = "a", usage: dict[str, Any] | None = None, reason: str | None = None) -> bytes:
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": reason}]
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
EVENTS = [event(), event(""), event("c"), event(None, USAGE), b"data: [DONE]\n\n"]


def test_times_are_those_of_the_piece_that_completes_an_event() -> None:
    pieces = [HEAD, EVENTS[0], EVENTS[1][:9], EVENTS[1][9:], EVENTS[2] + EVENTS[3] + EVENTS[4]]
    answer = read_answer(10.0, pieces, [10.5, 11.0, 12.0, 13.0, 15.0], 3)
    assert answer == Answer(10.0, 1.0, 15.0, 4, 3, 2, (2.0, 2.0))
    assert answer.tpot_s == 2.0


def test_chunked_bodies_are_read_however_they_are_cut() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [b"%x\r\n%s\r\n" % (len(data), data) for data in EVENTS]
    raw = head + b"".join(chunks) + b"0\r\n\r\n"
    whole = read_answer(0.0, [raw], [1.0], 3)
    assert (whole.ttft_s, whole.end_s, whole.num_output_tokens) == (1.0, 1.0, 3)
    single = [raw[index : index + 1] for index in range(len(raw))]
    times = [float(index) for index in range(len(raw))]
    answer = read_answer(0.0, single, times, 3)
    # The event's last byte but one is its first newline: that is when it is complete.
    assert answer.ttft_s == len(head) + len(chunks[0]) - 5
    assert answer.end_s == len(head) + sum(len(chunk) for chunk in chunks[:3]) - 5


@pytest.mark.parametrize(
    ("pieces", "max_tokens", "message"),
    [
        ([], 3, "no answer"),
        ([b"HTTP/1.1 503 Busy\r\n\r\nloading"], 3, "HTTP 503"),
        ([HEAD, *EVENTS[:4]], 3, "without \\[DONE\\]"),
        ([HEAD, *EVENTS], 4, "3 tokens in place of 4"),
        ([HEAD, b'data: {"error": "out of memory"}\n\n'], 3, "out of memory"),
    ],
)
def test_whatever_is_no_whole_answer_is_an_error(pieces: list[bytes], max_tokens: int, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        read_answer(0.0, pieces, [1.0] * len(pieces), max_tokens)


def test_a_closing_chunk_without_text_is_no_token() -> None:
    pieces = [HEAD, *EVENTS[:3], event("", USAGE, "length"), EVENTS[4]]
    answer = read_answer(0.0, pieces, [0.0, 1.0, 2.0, 3.0, 9.0, 9.0], 3)
    assert answer.end_s == 3.0


def test_metrics_count_over_the_whole_run() -> None:
    good = Answer(0.0, 1.0, 3.0, 10, 3, 0, (1.0, 1.0))
    row = metrics([good, good], 0.0)
    assert (row["output_tok_s"], row["total_tok_s"], row["ttft_ms"], row["tpot_ms"]) == (
        2.0,
        8.667,
        1000.0,
        1000.0,
    )
    assert metrics([AnswerError("gone")], 0.0) == {"requests": 1, "errors": 1, "error": "gone"}


def test_prompts_are_the_same_for_all_systems_and_new_in_every_round() -> None:
    workload = WORKLOADS["W3"]
    first, second = make_prompts(workload, 1, 0), make_prompts(workload, 1, 1)
    assert first == make_prompts(workload, 1, 0)
    assert len(first) == 32 and {len(prompt) for prompt in first} == {1088}
    assert len({tuple(prompt[:1024]) for prompt in first}) == 1
    assert len({tuple(prompt[1024:]) for prompt in first}) == 32
    assert first[0][:16] != second[0][:16]


def test_arrivals_are_poisson_and_repeatable() -> None:
    times = poisson_times_s(2.0, 2000, 1)
    assert times == poisson_times_s(2.0, 2000, 1) and times[0] == 0.0
    assert times == sorted(times)
    assert times[-1] / 1999 == pytest.approx(0.5, rel=0.1)


def test_workloads_run_with_the_model_changing_once() -> None:
    assert select(["W4", "W6", "start", "W1"]) == ["start", "W1", "W6", "W4"]
    with pytest.raises(SystemExit, match="unknown workload 'W9'"):
        select(["W9"])


@pytest.mark.parametrize("first", [0, 7, 20, 47])
@pytest.mark.parametrize("capacity", [-1, 0, 3, 19, 20, 21, 46, 47])
def test_the_search_finds_the_highest_rate_that_passes(first: int, capacity: int) -> None:
    search = RateSearch(first)
    tried: list[int] = []
    while (index := search.next) is not None:
        tried.append(index)
        search.tell(index, index <= capacity)
    assert search.passed == (capacity if capacity >= 0 else None)
    assert len(tried) == len(set(tried)) and len(tried) <= 16


def test_rates_of_the_grid_are_a_tenth_apart() -> None:
    assert all(b / a == pytest.approx(1.1, rel=0.01) for a, b in pairwise(GRID))


def test_limits_come_from_the_best_peer_and_count_failures_as_missed() -> None:
    rows = [
        {"system": OURS, "ttft_ms": 1.0, "tpot_ms": 1.0},
        {"system": "vllm", "ttft_ms": 100.0, "tpot_ms": 30.0},
        {"system": "llamacpp", "ttft_ms": 200.0, "tpot_ms": 20.0},
    ]
    earlier = [{"system": "vllm", "ttft_ms": 1.0, "tpot_ms": 1.0}]
    limits = limits_of([*earlier, *rows])
    assert limits == Limits(400.0, 40.0) and limits_of(rows[:1]) is None
    assert limits.lets(400.0, 40.0) and not limits.lets(401.0, 1.0) and not limits.lets(1.0, 41.0)
    in_time = Answer(0.0, 0.4, 0.48, 1, 3, 0, ())
    slow_start = Answer(0.0, 0.5, 0.58, 1, 3, 0, ())
    slow_tokens = Answer(0.0, 0.4, 0.6, 1, 3, 0, ())
    assert limits.share_met([in_time, slow_start, slow_tokens, AnswerError("gone")]) == 0.25


def test_a_system_takes_part_until_it_has_its_runs_or_has_had_its_tries() -> None:
    targets = Targets(["a", "b", "c", "d"], rounds=4, slow_rounds=2)
    for _ in range(2):
        targets.note("a", True, False, 1.0)
        targets.note("b", True, False, 50.0)
        targets.note("c", False, True, 0.0)
        targets.note("d", False, False, 1.0)
    assert targets.open() == ["a", "d"]
    for _ in range(6):
        targets.note("d", False, False, 1.0)
    targets.drop("a")
    assert targets.open() == []


def run(
    system: str, value: float, session: int = 0, *, kept: bool = True, workload: str = "W2"
) -> dict[str, Any]:
    times = {"ttft_ms": 100 / value, "tpot_ms": 10 / value, "pss_mb": 1000, "bandwidth_gb_s": [50, 50]}
    row = {
        "session": session,
        "system": system,
        "workload": workload,
        "output_tok_s": value,
        **times,
        "kept": kept,
    }
    return row if kept else {**row, "why": "bandwidth"}


def data(runs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"sessions": [], "skipped": {}, "starts": [], "unloaded": [], "trials": [], "runs": runs, **more}


def test_the_table_shows_medians_of_kept_runs_and_the_ratio_to_the_best_peer() -> None:
    runs = [run(OURS, value) for value in (10, 20, 60)] + [run("vllm", 10), run("openvino", 16)]
    runs += [run("openvino", 999, kept=False), run("transformers", 5, session=1), run(OURS, 30, session=1)]
    text = report.table(data(runs))
    assert "| W2: 16 at once, 256 in / 128 out | output tok/s | 20.0 | 10.0 | 16.0 | 5.0 † | 1.25x |" in text
    assert "|  | TPOT ms | 0.5 | 1.0 | 0.6 | 2.0 † | 1.25x |" in text
    assert "another session" in text
    assert "discarded: 1 (1 for bandwidth)" in report.notes(data(runs)) and "discarded: 1" in text
    sessions = [{"date": "1", "xllm": "abc"}, {"date": "2", "xllm": "def"}]
    assert report.sources({**data(runs), "sessions": sessions}) == "W2, memory (PSS) after W2: 1 at abc."


def test_a_ratio_to_nothing_is_no_ratio() -> None:
    assert report.ratio_to_best({OURS: 0.0, "vllm": 2.0}, set(), is_more_better=False) is None
    assert report.ratio_to_best({OURS: 2.0, "vllm": 0.0}, set(), is_more_better=True) is None
    assert report.ratio_to_best({OURS: 2.0, "vllm": 4.0}, {"vllm"}, is_more_better=True) is None
    assert report.ratio_to_best({OURS: 2.0, "vllm": 4.0, "llamacpp": 3.0}, set(), is_more_better=False) == 1.5


def test_a_later_session_with_as_many_systems_replaces_an_earlier_one() -> None:
    runs = [run(OURS, 10), run("vllm", 10), run(OURS, 30, session=1), run("vllm", 10, session=1)]
    assert report.medians(runs, "output_tok_s") == ({OURS: 30, "vllm": 10}, set())


def test_the_rate_of_a_system_is_the_highest_that_passed() -> None:
    trials = [
        {"session": 0, "system": OURS, "rate": rate, "is_pass": is_pass, "kept": kept}
        for rate, is_pass, kept in (
            (0.5, True, True),
            (0.8, False, True),
            (0.7, True, True),
            (0.9, True, False),
        )
    ] + [
        {"session": 0, "system": "vllm", "rate": rate, "is_pass": False, "kept": kept}
        for rate, kept in ((0.5, True), (0.4, False))
    ]
    assert report.best_rates(data([], trials=trials)) == [
        {"session": 0, "system": OURS, "rate": 0.7, "is_below": False},
        {"session": 0, "system": "vllm", "rate": 0.5, "is_below": True},
    ]
    line = next(
        x for x in report.table(data([run(OURS, 1), run("vllm", 1)], trials=trials)).splitlines() if "W6" in x
    )
    assert "| 0.70 | < 0.50 | > 1.40x |" in line


def test_the_record_keeps_earlier_sessions_and_hides_paths(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    hidden = {str(tmp_path): "WORK"}
    record.Record(path, {"date": "1"}, hidden).add("runs", {"system": OURS})
    second = record.Record(path, {"date": "2"}, hidden)
    second.skip("vllm", "W1", f"$ {tmp_path}/vllm serve\nout of memory")
    found = record.read(path)
    assert [session["date"] for session in found["sessions"]] == ["1", "2"]
    assert found["runs"] == [{"session": 0, "system": OURS}]
    assert found["skipped"]["vllm W1"] == {"session": 1, "reason": "$ WORK/vllm serve\nout of memory"}
    second.add("runs", {"system": "vllm", "workload": "W1"})
    assert record.read(path)["skipped"] == {}


@pytest.mark.parametrize("system", [OURS, *PEERS])
def test_every_system_gets_the_same_model_and_a_port_of_its_own(system: str, tmp_path: Path) -> None:
    settings = Settings(tmp_path, 3, {"0.6b": tmp_path / "m", "tiny": tmp_path / "t"})
    first, tiny = (launch(system, WORKLOADS[name], settings) for name in ("W1", "W4"))
    assert str(first.files) in first.command and first.files != tiny.files
    assert str(first.port) in first.command
    ports = {launch(name, WORKLOADS["W1"], settings).port for name in (OURS, *PEERS)}
    assert len(ports) == 5


def test_llamacpp_gets_as_many_slots_as_its_memory_holds() -> None:
    for name, workload in WORKLOADS.items():
        slots, cells = llamacpp_slots(workload, 2)
        assert cells // slots >= workload.prompt_tokens + workload.output_tokens, name
        assert cells * 114_688 <= 2 * 2**30
    assert [llamacpp_slots(WORKLOADS[name], 2)[0] for name in ("W1", "W2", "W3", "W4")] == [1, 16, 14, 64]
    assert llamacpp_slots(WORKLOADS["W3"], 4)[0] == 29


ECHO = """
import sys
sys.path.insert(0, {folder!r})
from shim_http import ShimServer
server = ShimServer({port}, {model!r})
while True:
    for request in server.poll(None):
        for token in range(request.max_tokens):
            server.send(request, [token])
        server.finish(request)
"""


def echo(folder: Path, port: int) -> tuple[str, ...]:
    """A server that answers with its own speed; stands for any system."""
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    shims = str(ROOT / "benchmarks" / "cpu_peers")
    return (sys.executable, "-c", ECHO.format(folder=shims, port=port, model=str(folder)))


def test_a_server_starts_answers_freezes_thaws_and_ends(tmp_path: Path) -> None:
    port = free_port()
    server = Server("echo", echo(tmp_path, port), {}, port, tmp_path / "log")
    try:
        assert server.start(60.0) > 0
        (pid,) = server.pids
        server.freeze()
        assert state(pid) == "T"
        server.thaw()
        server.ping()
        assert state(pid) in "RS"
        assert server.memory_mb > 1 and own_s([pid]) > own_s([]) - 1 and busy_s() > 0
    finally:
        server.stop()
    assert server.pids == [] and tree(pid) == []


def test_a_session_measures_all_systems_and_skips_those_that_fail(tmp_path: Path) -> None:
    ports = {OURS: free_port(), "vllm": free_port()}

    def launched(system: str, workload: Workload) -> Launch:
        command = echo(tmp_path, ports[system]) if system in ports else (sys.executable, "-c", "exit(1)")
        return Launch(command, {}, ports.get(system, free_port()), tmp_path, 1)

    bandwidth = iter([50.0, 50.0, 50.0, 90.0])
    rows = record.Record(tmp_path / "out.json", {"date": "1", "xllm": "abc"}, {})
    fleet = Fleet(launched, lambda: next(bandwidth, 50.0), rows, tmp_path, max_foreign=99.0, seed=1)
    workload = Workload("W2", "small", "tiny", 4, 8, 6)
    systems = [OURS, "vllm", "llamacpp"]
    try:
        run_starts(fleet, systems[:2], 2, Budget(5.0))
        run_workload(fleet, workload, systems, 2, 1, Budget(5.0))
        # Limits that any machine meets: how fast the answers come is not what is tested.
        arrivals = Workload("W6", "arrivals", "tiny", 4, 8, 6)
        run_capacity(fleet, arrivals, systems[:2], 4, Budget(5.0), Limits(60_000.0, 60_000.0))
        late = Workload("W7", "too slow", "tiny", 4, 8, 6)
        run_capacity(fleet, late, systems[:1], 4, Budget(5.0), Limits(0.0, 0.0))
    finally:
        fleet.stop_all()
    found = record.read(tmp_path / "out.json")
    assert [row["system"] for row in found["starts"]] == [OURS, "vllm", OURS, "vllm"]
    kept = [(row["round"], row["system"]) for row in found["runs"] if row["kept"]]
    assert kept == [(0, OURS), (1, "vllm"), (1, OURS), (2, "vllm")]
    assert [row["why"] for row in found["runs"] if not row["kept"]] == ["bandwidth"]
    assert all(row["output_tok_s"] > 0 and row["requests"] == 4 for row in found["runs"])
    assert set(found["skipped"]) == {"llamacpp W2", f"{OURS} W7"}
    assert "status 1" in found["skipped"]["llamacpp W2"]["reason"]
    assert "alone on the machine it takes" in found["skipped"][f"{OURS} W7"]["reason"]
    assert (
        {row["system"] for row in found["unloaded"]}
        == {OURS, "vllm"}
        == {r["system"] for r in found["trials"]}
    )
    assert all(row["is_pass"] for row in found["trials"])
    assert max(row["rate"] for row in found["trials"]) == GRID[-1]
    assert "| W2: 16 at once" in report.table(found) and "req/s" in report.table(found)


def test_a_server_that_dies_says_how(tmp_path: Path) -> None:
    code = "import sys; print('no such model'); sys.exit(3)"
    server = Server("dead", [sys.executable, "-c", code], {}, free_port(), tmp_path / "log")
    with pytest.raises(ServerFailed, match=r"status 3: no such model"):
        server.start(60.0)
    server.stop()


def test_a_program_that_is_not_there_is_a_failed_server(tmp_path: Path) -> None:
    server = Server("none", [str(tmp_path / "none")], {}, free_port(), tmp_path / "log")
    with pytest.raises(ServerFailed, match="cannot be started"):
        server.start(1.0)


def test_memory_of_nothing_is_nothing() -> None:
    assert pss_mb([]) == 0
