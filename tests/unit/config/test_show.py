from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.model_dirs import GIB, make_spec
from xllm.config.load import Schema, load
from xllm.config.machine_facts import MachineFacts
from xllm.config.resolve import resolve
from xllm.config.show import effective_rows, format_json, format_text

FACTS = MachineFacts(num_cores=2, memory_total_bytes=8 * GIB, memory_available_bytes=8 * GIB)


def test_every_option_has_a_row_with_value_source_and_reason(tmp_path: Path) -> None:
    loaded = load(environ={"XLLM_SEED": "3"}, sets=["log.format=json"])
    resolved = resolve(loaded.engine(), make_spec(tmp_path), FACTS)
    rows = {row.key: row for row in effective_rows(loaded, resolved)}
    assert set(rows) == set(Schema().by_key)
    assert (rows["model.seed"].value, rows["model.seed"].source) == (3, "env XLLM_SEED")
    assert rows["log.format"].source == "flag --set"
    assert (rows["runner.num_threads"].value, rows["runner.num_threads"].source) == (1, "derived")
    assert "too small" in rows["runner.num_threads"].reason
    assert rows["cache.block_size"].source == "default"
    text = format_text(loaded, resolved)
    assert all(key in text for key in rows)
    assert "memory: weights" in text


def test_open_values_stay_auto_without_a_model() -> None:
    rows = {row.key: row for row in effective_rows(load())}
    assert rows["scheduler.max_num_seqs"].value is None
    assert "auto" in format_text(load())


def test_json_is_complete_and_secrets_are_masked(tmp_path: Path) -> None:
    loaded = load(environ={"XLLM_API_KEY": "hunter2,hunter3", "XLLM_ADMIN_API_KEY": "hunter4"})
    resolved = resolve(loaded.engine(), make_spec(tmp_path), FACTS)
    data = json.loads(format_json(loaded, resolved))
    assert data["options"]["api.api_key"] == {
        "value": ["***", "***"],
        "source": "env XLLM_API_KEY",
        "reason": "",
    }
    assert data["options"]["api.admin_api_key"]["value"] == "***"
    assert data["num_blocks"] == resolved.num_blocks
    assert "hunter" not in format_json(loaded, resolved) + format_text(loaded, resolved)
