from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from tests.fakes.openai_server import FakeOpenAI, running_in_thread
from xllm.cli import bench
from xllm.cli.flags import load_from_flags
from xllm.errors import ConfigError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_bench_serve_runs_against_a_server_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_in_thread(FakeOpenAI(api_key="secret")) as fake:
        port = fake.url.rpartition(":")[2]
        words = ["--port", port, "--num-prompts", "4", "--random-input-len", "8", "--random-output-len", "2"]
        words += [
            "--api-key",
            "secret",
            "--goodput",
            "ttft:99999",
            "tpot:99999",
            "--percentile-metrics",
            "ttft,e2el",
        ]
        words += ["--metric-percentiles", "50,99", "--request-rate", "500", "--max-concurrency", "2"]
        words += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
        words += ["--metadata", "machine=mine", "--extra-body", '{"top_k": 3}', "--ignore-eos"]
        assert bench.run(parse("serve", *words)) == 0
        assert (
            bench.run(parse("serve", "--base-url", fake.url, "--num-prompts", "1", "--api-key", "secret"))
            == 0
        )
    out = capsys.readouterr().out
    assert out.count("Serving Benchmark Result") == 2 and "P50 E2EL (ms):" in out and "goodput" in out
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["completed"] == 4 and saved["machine"] == "mine"
    assert all(body["top_k"] == 3 and body["ignore_eos"] for body in fake.bodies[:4])


def test_bench_serve_takes_the_key_from_the_environment_and_fails_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_in_thread(FakeOpenAI(api_key="secret")) as fake:
        words = ["serve", "--base-url", fake.url, "--num-prompts", "1", "--random-input-len", "4"]
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert bench.run(parse(*words)) == 1
        assert "wrong key" in capsys.readouterr().err
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        assert bench.run(parse(*words)) == 0


def test_defaults_are_vllms() -> None:
    args = parse("serve")
    assert (args.num_prompts, args.random_input_len, args.random_output_len) == (1000, 1024, 128)
    assert args.request_rate == math.inf and args.burstiness == 1.0 and args.port == 8000
    args = parse("latency")
    assert (args.input_len, args.output_len, args.batch_size) == (32, 128, 8)
    assert (args.num_iters_warmup, args.num_iters) == (10, 30)


def test_wrong_values_are_named() -> None:
    for words in (
        ["serve", "--metadata", "x"],
        ["startup", "--num-runs", "0"],
        ["latency", "--batch-size", "0"],
    ):
        with pytest.raises(ConfigError):
            bench.run(parse(*words))
    for text in ("[1]", "{"):
        with pytest.raises(SystemExit):
            parse("serve", "--extra-body", text)


def test_engine_flags_become_keyword_arguments() -> None:
    words = ["--dtype", "float32", "--no-enable-prefix-caching", "--max-num-seqs", "4", "--seed", "7"]
    args = parse("throughput", "some/model", *words, "--num-prompts", "3")
    arguments = bench.engine_arguments(load_from_flags(args, {}))
    assert arguments == {
        "model": "some/model",
        "dtype": "float32",
        "enable_prefix_caching": False,
        "max_num_seqs": 4,
        "seed": 7,
    }


def test_words_after_two_dashes_go_to_the_started_server() -> None:
    args = parse("startup", "--num-runs", "2", "--", "my/model", "--dtype", "float32")
    assert args.serve_args == ["my/model", "--dtype", "float32"] and args.num_runs == 2
