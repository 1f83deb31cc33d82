"""Every pair of mechanisms together gives the tokens of none: a covering array over FACTORS, each cell checked to have
exercised what it switched on.

A new mechanism is a row of FACTORS, what it does to the engine or the requests in :func:`build` / :func:`requests`, and
its evidence in EVIDENCE.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import build_engine, page_map, range_placement, request
from tests.equivalence.families import VOCAB
from tests.fakes.sync_engine import Completion, SyncEngine
from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.kernels.linear.native import PackedWeight
from xllm.engine.layers.linear import Linear
from xllm.engine.platform.native import native_library
from xllm.engine.runner.buckets import LaunchMode
from xllm.engine.runner.graph_book import EagerBook
from xllm.engine.runner.native_book import NativeBook
from xllm.engine.scheduler.admission.policy import AdmissionPolicy
from xllm.engine.scheduler.admission.table import ADMISSION_POLICIES, AdmissionSettings, build_admission
from xllm.engine.scheduler.sequence import Sequence as Seq
from xllm.types.request import Request

GetModel = Callable[[str], SmallModel]
Cell = Mapping[str, str]
Streams = dict[tuple[str, int], Completion]

# The first value of a row is the plain one; nothing may change what clients get.
FACTORS: dict[str, tuple[str, ...]] = {
    "steps": ("sync", "async"),
    "kv_layout": ("paged", "xtensor"),
    "prefix_cache": ("off", "on"),
    "chunk": ("whole", "12", "5"),
    "preemption": ("none", "forced"),
    "graphs": ("off", "decode", "all"),
    "kernels": ("reference", "native") if native_library() is not None else ("reference",),
    "admission": tuple(sorted(ADMISSION_POLICIES)),
    "choices": ("1", "3"),
    "penalties": ("off", "on"),
    "masks": ("off", "on"),
    "ends": ("length", "stop"),
}
OF_REQUESTS = ("choices", "penalties", "masks")
"""Factors that say what is asked for; the others say how it is computed, or where it is cut."""

MODEL = "qwen3-wide-kv"  # a page of layout xtensor is as big as a block: four tokens
NUM_TOKENS, BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 16, 4, 22, 64
FORBIDDEN = 5
FORCED_AT = range(4, 40, 3)
LOGPROB_TOLERANCE = 2e-3


def covering_array(factors: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Few cells in which every pair of values of two factors occurs; greedy, the same every time."""
    names = list(factors)
    missing = {
        ((a, x), (b, y)) for a, b in combinations(names, 2) for x, y in product(factors[a], factors[b])
    }
    cells = []
    while missing:
        (first, second) = min(missing)
        cell = dict([first, second])
        for name in names:
            if name not in cell:
                cell[name] = max(
                    factors[name], key=lambda v, n=name: len(_pairs(cell | {n: v}, names) & missing)
                )
        missing -= _pairs(cell, names)
        cells.append({name: cell[name] for name in names})
    return cells


def _pairs(cell: Cell, names: Sequence[str]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    known = [(name, cell[name]) for name in names if name in cell]
    return set(combinations(known, 2))


EVERYTHING = {name: values[-1] for name, values in FACTORS.items()}
CELLS = covering_array(FACTORS) + [EVERYTHING | {"admission": name} for name in FACTORS["admission"]]
if native_library() is not None:
    # Layers as single calls need native kernels and are a way to launch of their own: every pair of the other factors.
    OTHERS = {
        name: values for name, values in FACTORS.items() if name not in ("graphs", "kernels", "admission")
    }
    WHOLE_LAYERS = {"graphs": "layers", "kernels": "native", "admission": "watermark"}
    CELLS += [cell | WHOLE_LAYERS for cell in covering_array(OTHERS)]


class CountingAdmission:
    """A policy, and how often it said no."""

    def __init__(self, inner: AdmissionPolicy) -> None:
        self._inner = inner
        self.num_refused = 0

    def begin_round(self, running: Sequence[Seq], cache: KVCache) -> None:
        self._inner.begin_round(running, cache)

    def may_admit(self, seq: Seq, hit: PrefixHit) -> bool:
        is_in = self._inner.may_admit(seq, hit)
        self.num_refused += not is_in
        return is_in

    def on_admit(self, seq: Seq) -> None:
        self._inner.on_admit(seq)

    def on_finish(self, seq: Seq) -> None:
        self._inner.on_finish(seq)

    def predicted_peak_blocks(self, running: Sequence[Seq], cache: KVCache) -> int | None:
        return self._inner.predicted_peak_blocks(running, cache)


def prompts() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Seven prompts; four share a beginning of several blocks and a bit."""
    rng = random.Random(17)
    shared = tuple(rng.randrange(VOCAB) for _ in range(22))
    for index in range(7):
        own = tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(3, 18)))
        yield f"r{index}", shared + own[:8] if index % 2 == 0 else own


def requests(cell: Cell, stop_ids: Mapping[str, int]) -> list[Request]:
    fields: dict[str, Any] = {"n": int(cell["choices"]), "logprobs": 1}
    if cell["penalties"] == "on":
        fields |= {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3}
    if cell["masks"] == "on":
        fields |= {"bad_words_token_ids": ((FORBIDDEN,), (9, 4)), "allowed_token_ids": tuple(range(200))}
    asked = []
    for index, (name, prompt) in enumerate(prompts()):
        own = {"temperature": (0.0, 1.0, 0.7)[index % 3], "top_p": (1.0, 0.9)[index % 2]}
        if index == 3:
            own["prompt_logprobs"] = 1
        if name in stop_ids:
            own["stop_token_ids"] = (stop_ids[name],)
        asked.append(request(name, prompt, NUM_TOKENS, seed=index, **fields, **own))
    return asked


def build(model: SmallModel, cell: Cell, *, num_blocks: int) -> tuple[SyncEngine, CountingAdmission]:
    depth = 2 if cell["steps"] == "async" else 1
    chunk = 8 * MAX_LEN if cell["chunk"] == "whole" else int(cell["chunk"])
    settings = AdmissionSettings(
        watermark=0.2, prior_tokens=NUM_TOKENS, chunk_tokens=chunk, depth=depth, horizon_tokens=MAX_LEN
    )
    admission = CountingAdmission(build_admission(cell["admission"], settings))
    engine = build_engine(
        model.path,
        depth=depth,
        admission=admission,
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_model_len=MAX_LEN,
        max_num_seqs=7,
        max_num_batched_tokens=chunk,
        enable_prefix_caching=cell["prefix_cache"] == "on",
        kv_layout=cell["kv_layout"],
        graphs=cell["graphs"],
        kernels=cell["kernels"],
    )
    if cell["preemption"] == "forced":
        engine.before_step = lambda step: _preempt(engine, step)
    return engine, admission


def _preempt(engine: SyncEngine, step: int) -> None:
    running = engine.core.scheduler.running
    if step in FORCED_AT and len(running) > 1:
        engine.core.scheduler.preempt(running[-1], because="the test", now_s=0.0)
        engine.core.check()


_BASELINES: dict[tuple[str, ...], Streams] = {}


def baseline(model: SmallModel, cell: Cell) -> Streams:
    """What the plain engine gives with memory for everybody; made once per kind of request."""
    key = tuple(cell[name] for name in OF_REQUESTS)
    if key not in _BASELINES:
        plain = {name: values[0] for name, values in FACTORS.items()}
        plain |= {"admission": "watermark"} | dict(zip(OF_REQUESTS, key, strict=True))
        engine, _ = build(model, plain, num_blocks=1000)
        _BASELINES[key] = dict(engine.run(requests(plain, {})))
        engine.close()
    return _BASELINES[key]


def cut(whole: Completion, stop_id: int | None) -> tuple[list[int], str]:
    """Tokens and end of a stream, with what a stop token makes of it."""
    if stop_id in whole.token_ids:
        return whole.token_ids[: whole.token_ids.index(stop_id) + 1], "stop"
    return whole.token_ids, "length"


def compare(got: Streams, wanted: Streams, stop_ids: Mapping[str, int]) -> None:
    assert got.keys() == wanted.keys()
    for key, whole in wanted.items():
        tokens, end = cut(whole, stop_ids.get(key[0]))
        mine = got[key]
        assert (mine.token_ids, mine.finish_reason) == (tokens, end), key
        for ours, theirs in zip(mine.logprobs, whole.logprobs, strict=False):
            assert ours.token.token_id == theirs.token.token_id
            assert abs(ours.token.logprob - theirs.token.logprob) < LOGPROB_TOLERANCE
        assert len(mine.logprobs) == len(tokens)
        assert (mine.prompt_logprobs is None) == (whole.prompt_logprobs is None)
        for ours, theirs in zip(mine.prompt_logprobs or (), whole.prompt_logprobs or (), strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert abs(ours.token.logprob - theirs.token.logprob) < LOGPROB_TOLERANCE


def check_evidence(cell: Cell, engine: SyncEngine, admission: CountingAdmission, got: Streams) -> None:
    """Every mechanism of the cell must have acted, and none that is off."""
    rows = [row for batch in engine.batches for row in batch.rows]
    scheduler = engine.core.scheduler
    is_async = cell["steps"] == "async"
    assert engine.max_in_flight == (2 if is_async else 1)
    assert (sum(row.after is not None for row in rows) > 20) == is_async
    assert (scheduler.num_hit_tokens > 0) == (cell["prefix_cache"] == "on")
    if cell["chunk"] != "whole":
        assert sum(row.num_logits == 0 for row in rows) >= 3  # pieces of prompts
    if cell["preemption"] == "forced":
        assert scheduler.num_preemptions >= 2
    assert admission.num_refused > 0
    _check_launches(cell, engine)
    if cell["choices"] == "3":
        assert sum(len(batch.copies) for batch in engine.batches) > 0  # forks copy a partly filled tail
    if cell["kv_layout"] == "xtensor":
        placement, pages = range_placement(engine), page_map(engine)
        assert pages.num_mapped > 10 and placement.num_rebound > 0 and placement.num_ahead > 0
        is_shared = cell["prefix_cache"] == "on" or cell["choices"] == "3"
        assert (placement.num_shared > 0) == is_shared
        assert pages.num_repaired == pages.num_refused == 0  # every page was mapped by an order, in time
    assert any(batch.has_mask for batch in engine.batches) == (cell["masks"] == "on")
    if cell["masks"] == "on":
        assert all(t < 200 and t != FORBIDDEN for done in got.values() for t in done.token_ids)
    if cell["ends"] == "stop":
        assert sum(done.finish_reason == "stop" for done in got.values()) >= 7
        assert (engine.core.num_wasted_tokens > 0) == is_async
    else:
        assert engine.core.num_wasted_tokens == 0


def _check_launches(cell: Cell, engine: SyncEngine) -> None:
    """Decodes, and with "all" prompts too, must have run as graphs of a few sizes."""
    runner = engine.executor._runner  # type: ignore[attr-defined]
    book = runner.graph_book
    is_packed = {isinstance(m.packed, PackedWeight) for m in runner._model.modules() if isinstance(m, Linear)}
    assert is_packed == {cell["kernels"] == "native"}
    if cell["graphs"] == "layers":
        assert isinstance(book, NativeBook) and book.num_launches == len(engine.results)
        return
    if cell["graphs"] == "off":
        assert isinstance(book, EagerBook)
        return
    launches = book.num_launches
    assert launches.total() == len(engine.results)
    assert launches[LaunchMode.FULL] > 3
    assert (launches[LaunchMode.PIECEWISE] > 2) == (cell["graphs"] == "all")
    assert (launches[LaunchMode.EAGER] == 0) == (cell["graphs"] == "all")
    assert 1 < book.num_graphs < launches.total()  # some were replayed


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(cell.values()))
def test_pairs(cell: Cell, small_model: GetModel) -> None:
    model = small_model(MODEL)
    wanted = baseline(model, cell)
    stop_ids: dict[str, int] = {}
    if cell["ends"] == "stop":
        stop_ids = {name: wanted[name, 0].token_ids[4 + index] for index, (name, _) in enumerate(prompts())}
    engine, admission = build(model, cell, num_blocks=NUM_BLOCKS)
    got = engine.run(requests(cell, stop_ids))
    engine.close()
    compare(got, wanted, stop_ids)
    check_evidence(cell, engine, admission, got)
    assert engine.core.load().blocks_used == 0


def test_penalties_change_what_is_sampled(small_model: GetModel) -> None:
    """Otherwise the cells with penalties would prove nothing."""
    model = small_model(MODEL)
    plain = {name: values[0] for name, values in FACTORS.items()}
    without = baseline(model, plain)
    with_them = baseline(model, plain | {"penalties": "on"})
    assert sum(without[k].token_ids != with_them[k].token_ids for k in without) >= 4


def test_every_pair_of_values_occurs() -> None:
    names = list(FACTORS)
    covered = set().union(*(_pairs(cell, names) for cell in CELLS))
    for a, b in combinations(names, 2):
        assert {((a, x), (b, y)) for x, y in product(FACTORS[a], FACTORS[b])} <= covered
