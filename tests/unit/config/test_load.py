from __future__ import annotations

from pathlib import Path

import pytest

from xllm.config.load import Loaded, Schema, engine_config_from_plain, load, load_arguments
from xllm.config.schema import format_bytes, parse_bytes, to_plain
from xllm.config.serve import ENGINE_SECTIONS, EngineConfig
from xllm.errors import ConfigError


def load_yaml(tmp_path: Path, text: str, **kwargs: object) -> Loaded:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load(config_file=str(path), **kwargs)  # type: ignore[arg-type]


def flag(name: str, value: object) -> tuple[object, object, str]:
    return Schema().find_flat(name)[0], value, name


def test_nothing_said_is_all_defaults() -> None:
    loaded = load()
    assert loaded.engine() == EngineConfig()
    assert loaded.sources == {}
    assert str(loaded.source("cache.block_size")) == "default"


def test_later_layers_win_and_sources_are_kept(tmp_path: Path) -> None:
    loaded = load_yaml(
        tmp_path,
        "cache: {block_size: 8}\nmax-num-seqs: 3\nport: 1\nseed: 5",
        environ={"XLLM_MAX_NUM_SEQS": "4", "XLLM_PORT": "2"},
        flags=[flag("--port", "3")],
        sets=["server.grace_s=2.5"],
    )
    serve = loaded.serve()
    assert (serve.engine.cache.block_size, serve.engine.scheduler.max_num_seqs, serve.api.port) == (8, 4, 3)
    assert (serve.engine.model.seed, serve.engine.server.grace_s) == (5, 2.5)
    assert str(loaded.source("scheduler.max_num_seqs")) == "env XLLM_MAX_NUM_SEQS"
    assert str(loaded.source("api.port")) == "flag --port"
    assert str(loaded.source("server.grace_s")) == "flag --set"
    assert loaded.source("model.seed").kind == "yaml"


@pytest.mark.parametrize(
    ("yaml_text", "expected"),
    [
        ("cache: {blok_size: 8}", "cache.block_size"),
        ("cash: {block_size: 8}", "unknown option 'cash'"),
        ("max-modle-len: 8", "max-model-len"),
        ("- a\n- b", "must hold a mapping"),
        ("port: 1\nport: 2", "said twice: port"),
        ("port: 1\napi: {port: 2}", "api.port is said twice"),
        ("port: [1", "cannot read"),
        ("enable-prefix-caching: maybe", "yes or no"),
        ("block_size: 16.5", "whole number"),
        ("block_size: true", "whole number"),
        ("dtype: float8", "float32, bfloat16, float16"),
        ("kv_cache_memory_bytes: 2 elephants", "size"),
        ("gpu_memory_utilization: .nan", "finite"),
        ("seed:", "whole number"),
    ],
)
def test_bad_yaml_names_the_problem(tmp_path: Path, yaml_text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + expected.replace("[", r"\[")):
        load_yaml(tmp_path, yaml_text)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(config_file=str(tmp_path / "nowhere.yaml"))


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            environ={"XLLM_MAX_MODEL_LENGTH": "5", "XLLM_PORT": "many"},
            sets=["cache.block_size=5", "log.levle=info", "novalue"],
        )
    text = str(caught.value)
    for part in ("XLLM_MAX_MODEL_LEN'", "XLLM_PORT: 'many'", "a power of two", "log.level", "has no '='"):
        assert part in text
    assert text.startswith("5 problems")


def test_environment_of_other_programs_and_kubernetes_links_is_left_alone() -> None:
    loaded = load(
        environ={
            "PATH": "/bin",
            "XLLM_PORT": "tcp://10.0.0.1:8000",
            "XLLM_PORT_8000_TCP_ADDR": "10.0.0.1",
            "XLLM_SERVICE_HOST": "10.0.0.1",
            "XLLM_VENV": "/somewhere",
            "XLLM_SEED": "",
        }
    )
    assert loaded.sources == {}


def test_engine_ignores_no_variable_but_accepts_those_of_the_edge() -> None:
    assert load(sections=ENGINE_SECTIONS, environ={"XLLM_API_KEY": "k"}).sources == {}
    with pytest.raises(ConfigError, match="XLLM_API_KEY"):
        load(sections=ENGINE_SECTIONS, environ={"XLLM_API_KEYS": "k"})


def test_secret_values_are_not_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        load(sets=["api.api_key=hunter2"], flags=[flag("--api-key", {"not": "hunter3"})])  # type: ignore[list-item]
    assert "hunter" not in str(caught.value)


def test_arguments_are_called_like_the_flags() -> None:
    config = load_arguments(
        {"model": "m", "dtype": "float32", "max_num_batched_tokens": 64, "enable_prefix_caching": False}
    ).engine()
    assert (config.model.model, config.model.dtype) == ("m", "float32")
    assert (config.scheduler.max_num_batched_tokens, config.cache.enable_prefix_caching) == (64, False)


def test_aliases_and_negations() -> None:
    assert load_arguments({"disable_radix_cache": True}).engine().cache.enable_prefix_caching is False
    assert (
        load_arguments({"no_enable_chunked_prefill": True}).engine().scheduler.enable_chunked_prefill is False
    )
    assert load_arguments({"context_length": 99}).engine().model.max_model_len == 99


def test_unknown_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="max-model-len"):
        load_arguments({"max_model_length": 5})


def test_plain_form_round_trips() -> None:
    config = load_arguments(
        {"model": "m", "kv_cache_memory_bytes": "1GiB", "served_model_name": ["a", "b"], "max_model_len": 77}
    ).engine()
    assert engine_config_from_plain(to_plain(config)) == config
    assert engine_config_from_plain(to_plain(EngineConfig())) == EngineConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2**31), ("2g", 2**31), ("512M", 2**29), ("1.5KiB", 1536), ("2GB", 2 * 10**9), ("7", 7), (7, 7)],
)
def test_sizes(text: object, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", -1, True, 1.5, "1 2", "2XiB", None])
def test_not_sizes(text: object) -> None:
    assert parse_bytes(text) is None


def test_sizes_for_people() -> None:
    assert [format_bytes(n) for n in (5, 2048, 3 * 2**20, 2**31)] == [
        "5 B",
        "2.00 KiB",
        "3.00 MiB",
        "2.00 GiB",
    ]
