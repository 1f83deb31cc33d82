from __future__ import annotations

import ast
from pathlib import Path

import pytest

import xllm
from xllm.base.metrics import METRICS, Metrics


def lines(metrics: Metrics, compat: str = "none") -> dict[str, str]:
    rows = metrics.render(compat).decode().splitlines()
    return dict(row.rsplit(" ", 1) for row in rows if not row.startswith("#"))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics({"model_name": "m", "engine": "0"})


def test_counters_gauges_and_histograms_count(metrics: Metrics) -> None:
    metrics.inc("request_success", 2, "stop")
    metrics.set("num_requests_running", 3)
    metrics.observe("time_to_first_token_seconds", 0.03)
    rows = lines(metrics)
    common = 'engine="0",model_name="m"'
    assert rows['xllm:request_success_total{engine="0",finished_reason="stop",model_name="m"}'] == "2.0"
    assert rows[f"xllm:num_requests_running{{{common}}}"] == "3.0"
    assert rows[f"xllm:time_to_first_token_seconds_count{{{common}}}"] == "1.0"
    assert rows['xllm:time_to_first_token_seconds_bucket{engine="0",le="0.04",model_name="m"}'] == "1.0"
    assert rows['xllm:time_to_first_token_seconds_bucket{engine="0",le="0.02",model_name="m"}'] == "0.0"


def test_series_of_what_is_gone_are_dropped(metrics: Metrics) -> None:
    for name in ("a", "b"):
        metrics.set("instance_state", 1, name, "ready")
    metrics.set("instance_state", 1, "b", "lost")
    metrics.keep_only("instance_state", {("b", "lost")})
    metrics.keep_only("instance_state", {("b", "lost")})
    states = [row for row in lines(metrics) if "instance_state" in row]
    assert states == ['xllm:instance_state{engine="0",instance_id="b",model_name="m",state="lost"}']


def test_series_without_own_labels_exist_from_the_start(metrics: Metrics) -> None:
    rows = lines(metrics)
    for row in METRICS:
        if not row.labels:
            suffix = {"counter": "_total", "gauge": "", "histogram": "_count"}[row.kind]
            assert f'xllm:{row.name}{suffix}{{engine="0",model_name="m"}}' in rows


def test_vllm_names_come_in_addition(metrics: Metrics) -> None:
    metrics.inc("generation_tokens", 5)
    plain, both = lines(metrics), lines(metrics, "vllm")
    assert not any(name.startswith("vllm:") for name in plain)
    added = set(both) - set(plain)
    assert added and all(name.startswith("vllm:") for name in added)
    assert both['vllm:generation_tokens_total{engine="0",model_name="m"}'] == "5.0"
    assert both['vllm:num_requests_waiting{engine="0",model_name="m"}'] == "0.0"
    assert not any(name.startswith("vllm:engine_steps") for name in both)


def test_no_series_of_creation_times(metrics: Metrics) -> None:
    assert not any("_created" in name for name in lines(metrics, "vllm"))


def test_totals_of_another_process_become_a_counter(metrics: Metrics) -> None:
    for total in (5.0, 5.0, 9.0, 2.0):  # the engine restarted before the last report
        metrics.report_total("engine_steps", total)
    assert lines(metrics)['xllm:engine_steps_total{engine="0",model_name="m"}'] == "11.0"


def test_two_objects_do_not_share_state(metrics: Metrics) -> None:
    other = Metrics({"model_name": "m", "engine": "0"})
    metrics.inc("engine_steps")
    assert lines(other)['xllm:engine_steps_total{engine="0",model_name="m"}'] == "0.0"


def test_undeclared_names_and_wrong_labels_are_bugs(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.inc("no_such_metric")
    with pytest.raises(ValueError):
        metrics.inc("request_success")


def test_every_declared_metric_is_fed() -> None:
    package = Path(xllm.__file__).parent
    texts: set[object] = set()
    for path in package.rglob("*.py"):
        if path != package / "base" / "metrics.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {row.name for row in METRICS} - texts == set()
