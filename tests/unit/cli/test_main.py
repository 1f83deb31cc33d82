from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import xllm
from tests.fakes.model_dirs import write_config
from xllm.cli.main import COMMANDS, main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"xllm {xllm.__version__}\n"


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = import_module(COMMANDS[name][0])
    assert callable(command.add_arguments) and callable(command.run)
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"xllm {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sevre"], "did you mean 'serve'"),
        (["serve", "--max-modle-len", "5"], "did you mean --max-model-len"),
        (["serve", "--max-model-len"], "expected one argument"),
        (["serve", "--max-model-len", "five"], "--max-model-len: 'five' is not a whole number"),
        (["serve", "a", "b"], "unknown argument 'b'"),
        (["serve", "--set", "cache.blocksize=8"], "cache.block_size"),
        (["serve", "--block-size", "12"], "a power of two"),
        (["serve", "a", "--model", "b"], "model.model is said twice"),
        (["engine", "--port", "1"], "unknown argument '--port'"),
        (["serve", "--print-config=xml"], "invalid choice"),
    ],
)
def test_wrong_command_lines(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and expected in err


def effective(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert main(argv) == 0
    options: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)["options"]
    return options


def test_print_config_of_flags_in_every_spelling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_config(tmp_path / "model"))
    options = effective(
        ["serve", "--max_num_seqs=7", "--print-config=json", "--no-enable-prefix-caching", "--context-length", "99",
         "--api-key", "a,b", "--api-key", "c", "--served-model-name", "x", "--seed", "1", "--seed", "2",
         "--enable-chunked-prefill", model],
        capsys,
    )  # fmt: skip
    value = {key: row["value"] for key, row in options.items()}
    assert value["model.model"] == model
    assert (value["scheduler.max_num_seqs"], value["model.max_model_len"], value["model.seed"]) == (7, 99, 2)
    assert (value["cache.enable_prefix_caching"], value["scheduler.enable_chunked_prefill"]) == (False, True)
    assert value["api.api_key"] == ["***"] * 3
    assert value["model.served_model_name"] == ["x"]
    assert options["model.max_model_len"]["source"] == "flag --context-length"
    assert options["runner.num_threads"]["source"] == "derived"


def test_a_bare_print_config_does_not_swallow_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_config(tmp_path / "model"))
    assert main(["serve", "--print-config", model]) == 0
    out = capsys.readouterr().out
    assert model in out and out.startswith("option") and "memory: weights" in out


def test_environment_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path / "model")
    (tmp_path / "c.yaml").write_text(f"model: {tmp_path / 'model'}\nscheduler:\n  watermark: 0.1\n")
    monkeypatch.setenv("XLLM_CONFIG", str(tmp_path / "c.yaml"))
    monkeypatch.setenv("XLLM_PORT", "9")
    options = effective(["serve", "--print-config=json"], capsys)
    assert (options["scheduler.watermark"]["value"], options["api.port"]["source"]) == (0.1, "env XLLM_PORT")


def test_a_missing_model_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "/no/such/model", "--print-config"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: there is no model directory") and "hint:" in err and "Traceback" not in err


def test_doctor_says_what_would_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_config(tmp_path / "model"))
    assert main(["doctor", model, "--port", "0", "--max-num-seqs", "5"]) == 0
    out = capsys.readouterr().out
    assert "Qwen3ForCausalLM" in out and "5 sequences at once" in out and out.endswith("ready to serve\n")


def test_doctor_fails_when_serving_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_config(tmp_path / "model"))
    assert main(["doctor", model, "--port", "0", "--kv-cache-memory-bytes", "900TiB"]) == 1
    assert "KV is too big" in capsys.readouterr().out


def test_the_command_line_loads_no_torch() -> None:
    code = (
        "import sys; from xllm.cli.main import main\n"
        "import xllm, xllm.cli.serve, xllm.cli.doctor, xllm.cli.engine, xllm.cli.service\n"
        "main(['--version']); main(['serve', '--nonsense'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
