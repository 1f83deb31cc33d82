from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from xllm.cli import bench
from xllm.errors import ConfigError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["step", *words])


def test_a_shape_is_measured_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "steps.json"
    words = ["--shape", "tiny", "--load-format", "dummy", "--device", "cpu", "--dtype", "float32"]
    words += ["--num-threads", "1", "--num-gpu-blocks-override", "64", "--max-model-len", "512"]
    words += ["--num-seqs", "1", "3", "--num-steps", "4", "--input-len", "5", "--output-json", str(out)]
    assert bench.run(parse(*words)) == 0
    saved = json.loads(out.read_text())
    assert saved["model"] == "tiny"
    assert [row["num_seqs"] for row in saved["steps"]] == [1, 3]
    for row in saved["steps"]:
        assert row["num_steps"] == 4
        assert 0 < row["forward_ms"] < row["step_ms"]
        assert row["output_tokens_per_s"] == pytest.approx(1e3 * row["num_seqs"] / row["step_ms"])
        assert (row["device"], row["dtype"], row["num_threads"]) == ("cpu", "float32", 1)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "num_seqs" and len(lines) == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--shape", "huge", "--load-format", "dummy"), "one of tiny, qwen3-0.6b"),
        (("--shape", "tiny"), "--load-format dummy"),
        (("some/model", "--shape", "tiny", "--load-format", "dummy"), "no MODEL"),
    ],
)
def test_a_shape_needs_dummy_weights_and_a_name_we_know(words: tuple[str, ...], hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        bench.run(parse(*words))
    assert hint in str(refused.value.hint)
