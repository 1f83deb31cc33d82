"""The table: medians of the runs that count, and xLLM against the best peer.

A workload's figures come from its last session with the most systems, xLLM among them. A peer that only
took part in another session is shown from there with a dagger and does not enter the ratio: its runs were
not interleaved with these.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_peers.systems import KV_BYTES_PER_TOKEN, OURS, PEERS, TITLES
from benchmarks.cpu_peers.workloads import WORKLOADS

_SYSTEMS = (OURS, *PEERS)
_LOW_GB_S, _HIGH_GB_S = 60.0, 70.0
# Of the 0.6B checkpoint in bfloat16: every decode step reads them.
_WEIGHT_BYTES = 1.192e9

Data = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: which rows, which value, and whether more is better."""

    title: str
    unit: str
    rows: Callable[[Data], list[Row]]
    key: str
    is_more_better: bool = False
    digits: int = 1


def _runs(workload: str) -> Callable[[Data], list[Row]]:
    return lambda data: [row for row in data["runs"] if row["workload"] == workload and row["kept"]]


def _starts(data: Data) -> list[Row]:
    return [row for row in data["starts"] if row["model"] == "0.6b"]


def best_rates(data: Data) -> list[Row]:
    """Per session and system the highest rate that passed; ``is_below`` the lowest one tried where none did.

    Trials during which the memory's speed changed count for nobody.
    """
    trials: dict[tuple[int, str], list[Row]] = {}
    for row in data["trials"]:
        if not row["kept"]:
            continue
        trials.setdefault((row["session"], row["system"]), []).append(row)
    found = []
    for (session, system), rows in trials.items():
        passed = [row["rate"] for row in rows if row["is_pass"]]
        rate = max(passed) if passed else min(row["rate"] for row in rows)
        found.append({"session": session, "system": system, "rate": rate, "is_below": not passed})
    return found


def _lines() -> list[Line]:
    lines = []
    for name in ("W1", "W2", "W3", "W4", "W5"):
        title = f"{name}: {WORKLOADS[name].title}"
        lines += [
            Line(title, "output tok/s", _runs(name), "output_tok_s", is_more_better=True),
            Line("", "TTFT ms", _runs(name), "ttft_ms", digits=0),
            Line("", "TPOT ms", _runs(name), "tpot_ms"),
        ]
    return [
        *lines,
        Line(f"W6: {WORKLOADS['W6'].title}", "req/s", best_rates, "rate", is_more_better=True, digits=2),
        Line("process start to first token", "s", _starts, "first_token_s"),
        Line("memory (PSS) after start", "MB", _starts, "pss_mb", digits=0),
        Line("memory (PSS) after W2", "MB", _runs("W2"), "pss_mb", digits=0),
    ]


def main_session(rows: Sequence[Row]) -> int | None:
    """The newest of the sessions with the most systems, xLLM among them where it can be."""
    members: dict[int, set[str]] = {}
    for row in rows:
        members.setdefault(row["session"], set()).add(row["system"])
    joint = [session for session, systems in members.items() if OURS in systems] or list(members)
    return max(joint, key=lambda session: (len(members[session]), session)) if joint else None


def medians(rows: Sequence[Row], key: str) -> tuple[dict[str, float], set[str]]:
    """Median per system, and the systems whose figure is from another session than xLLM's."""
    rows = [row for row in rows if row.get(key) is not None]
    members: dict[int, set[str]] = {}
    for row in rows:
        members.setdefault(row["session"], set()).add(row["system"])
    main = main_session(rows)
    found, elsewhere = {}, set()
    for system in _SYSTEMS:
        sessions = [session for session, systems in members.items() if system in systems]
        if not sessions:
            continue
        session = main if main in sessions else max(sessions)
        if session != main:
            elsewhere.add(system)
        values = [row[key] for row in rows if row["session"] == session and row["system"] == system]
        found[system] = statistics.median(values)
    return found, elsewhere


def ratio_to_best(found: dict[str, float], elsewhere: set[str], is_more_better: bool) -> float | None:
    """Above 1: xLLM is ahead of every peer."""
    peers = [value for system, value in found.items() if system != OURS and system not in elsewhere]
    if OURS not in found or not peers:
        return None
    above, below = (found[OURS], max(peers)) if is_more_better else (min(peers), found[OURS])
    return above / below if below else None


def table(data: Data) -> str:
    """Markdown."""
    systems = [s for s in _SYSTEMS if any(s == row["system"] for row in (*data["runs"], *data["starts"]))]
    out = ["| | | " + " | ".join(TITLES[system] for system in systems) + " | xLLM / best peer |"]
    out.append("|---|---|" + "---|" * (len(systems) + 1))
    has_dagger = False
    for line in _lines():
        found, elsewhere = medians(line.rows(data), line.key)
        if not found:
            continue
        has_dagger |= bool(elsewhere)
        below = {
            row["system"]
            for row in line.rows(data)
            if row.get("is_below") and row[line.key] == found.get(row["system"])
        }
        cells = [
            f"{'< ' if s in below else ''}{found[s]:,.{line.digits}f}{' †' if s in elsewhere else ''}"
            if s in found
            else "-"
            for s in systems
        ]
        ratio = ratio_to_best(found, elsewhere, line.is_more_better)
        is_bound = below.issuperset(set(found) - elsewhere - {OURS})
        cells.append("-" if ratio is None else f"{'> ' if is_bound else ''}{ratio:.2f}x")
        out.append(f"| {line.title} | {line.unit} | " + " | ".join(cells) + " |")
    if has_dagger:
        out.append("\n† from another session than the rest of its line; not part of the ratio.")
    out += ["", f"{sources(data)} {_discarded(data)}"]
    return "\n".join(out)


def sources(data: Data) -> str:
    """Which line is from which session and from which commit of xLLM."""
    lines: dict[int, list[str]] = {}
    for line in _lines():
        session = main_session([row for row in line.rows(data) if row.get(line.key) is not None])
        if line.title and session is not None and session < len(data["sessions"]):
            lines.setdefault(session, []).append(line.title.partition(":")[0])
    found = []
    for session, titles in sorted(lines.items()):
        about = data["sessions"][session]
        found.append(f"{', '.join(titles)}: {about['date']} at {about['xllm']}")
    return "; ".join(found) + "."


def _discarded(data: Data) -> str:
    why = Counter(row["why"] for row in data["runs"] if not row["kept"])
    reasons = ", ".join(f"{number} for {reason}" for reason, number in sorted(why.items()))
    return f"Runs: {len(data['runs'])}, discarded: {sum(why.values())}{f' ({reasons})' if reasons else ''}."


def notes(data: Data) -> str:
    """What belongs below the table: sessions, discarded runs, bandwidth, skips."""
    out = []
    for index, session in enumerate(data["sessions"]):
        out.append(f"Session {index}: {session['date']}, {session['machine']}, `{session['command']}`")
    out.append(_discarded(data))
    out += _bandwidth_notes(data)
    out += [f"Skipped: {what}: {skip['reason']}" for what, skip in sorted(data["skipped"].items())]
    return "\n".join(out)


def read_gb_per_s(row: Row) -> float:
    """What a run of W1 read per second while decoding: weights and KV, from its TPOT."""
    workload = WORKLOADS["W1"]
    context = workload.prompt_tokens + workload.output_tokens / 2
    return (_WEIGHT_BYTES + context * KV_BYTES_PER_TOKEN) / row["tpot_ms"] / 1e6


def _bandwidth_notes(data: Data) -> Iterable[str]:
    rows = _runs("W1")(data)
    states = {"low": lambda low, high: high < _LOW_GB_S, "high": lambda low, high: low > _HIGH_GB_S}
    for state, is_in in states.items():
        tpot_ms: dict[str, float] = {}
        for system in _SYSTEMS:
            chosen = [
                row
                for row in rows
                if row["system"] == system and is_in(min(row["bandwidth_gb_s"]), max(row["bandwidth_gb_s"]))
            ]
            if chosen:
                share = statistics.median(
                    read_gb_per_s(row) / statistics.fmean(row["bandwidth_gb_s"]) for row in chosen
                )
                tpot_ms[system] = statistics.median(row["tpot_ms"] for row in chosen)
                yield (
                    f"W1 with {state} bandwidth, {TITLES[system]}: {tpot_ms[system]:.1f} ms per token, reads "
                    f"{share:.0%} of the probe (n = {len(chosen)})"
                )
        ratio = ratio_to_best(tpot_ms, set(), is_more_better=False)
        if ratio is not None:
            yield f"W1 with {state} bandwidth: {ratio:.2f}x the best peer's time per token"
