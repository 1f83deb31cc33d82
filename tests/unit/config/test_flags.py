from __future__ import annotations

import dataclasses

import pytest

from xllm.config.load import Schema
from xllm.config.schema import options_of
from xllm.config.serve import SECTIONS, SERVE_SECTIONS

# Adding a flag means adding it here, with a reason in the change: everything else is YAML or --set.
FLAGS = [
    "--admin-api-key",
    "--admission-policy",
    "--api-key",
    "--async-scheduling",
    "--batch-invariant",
    "--block-size",
    "--chat-template",
    "--cpu-set",
    "--device",
    "--dtype",
    "--early-rejection",
    "--enable-chunked-prefill",
    "--enable-log-requests",
    "--enable-prefix-caching",
    "--endpoint",
    "--enforce-eager",
    "--executor",
    "--fairness",
    "--generation-config",
    "--gpu-memory-utilization",
    "--host",
    "--kv-cache-memory-bytes",
    "--kv-layout",
    "--kv-page-bytes",
    "--load-format",
    "--log-level",
    "--max-model-len",
    "--max-num-batched-tokens",
    "--max-num-queued-reqs",
    "--max-num-queued-tokens",
    "--max-num-seqs",
    "--metrics-compat",
    "--model",
    "--num-gpu-blocks-override",
    "--num-threads",
    "--packed-weights-cache",
    "--port",
    "--profile-startup",
    "--revision",
    "--root-path",
    "--routing-policy",
    "--rpc-token",
    "--scheduling-policy",
    "--seed",
    "--served-model-name",
    "--shutdown-timeout",
    "--tokenizer",
]


def test_flags_are_those_we_mean_to_have() -> None:
    assert sorted(option.flag for option in Schema(SERVE_SECTIONS).options if option.flag) == FLAGS


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_documented_and_parses_its_own_default(section: str) -> None:
    for option in options_of(section, SECTIONS[section]):
        assert len(option.doc) > 15, f"{option.key} has no docstring"
        said = list(option.default) if isinstance(option.default, tuple) else option.default
        assert option.parse(said, "test") == option.default


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_are_frozen_keyword_only_and_hold_no_mutable_default(section: str) -> None:
    cls = SECTIONS[section]
    hash(cls())
    assert not hasattr(cls(), "__dict__")
    with pytest.raises(TypeError):
        cls(None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), dataclasses.fields(cls)[0].name, None)


def test_environment_names_are_unique_and_follow_the_flag() -> None:
    options = [option for option in Schema(SERVE_SECTIONS).options if option.flag]
    assert len({option.env for option in options}) == len(options)
    assert {option.env for option in options} >= {"XLLM_API_KEY", "XLLM_MAX_MODEL_LEN", "XLLM_PORT"}


def test_secrets_are_declared() -> None:
    secrets = {option.key for option in Schema(SERVE_SECTIONS).options if option.secret}
    assert secrets == {"api.api_key", "api.admin_api_key", "server.rpc_token"}
