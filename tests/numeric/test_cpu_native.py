"""The CPU kernels beyond the table's common tests: every variant, layouts, invariance, building and loading."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from xllm.config.model_spec import ModelSpec, RopeSpec
from xllm.engine.attention import AttentionPlanner, NativeAttention
from xllm.engine.kernels import parse_kernels
from xllm.engine.kernels.linear.native import linear, pack_weight, take_rows
from xllm.engine.kernels.paged_attention.native import KVStrides, StepRows, paged_attention
from xllm.engine.kernels.sampling.native import sample_gumbel as native_sample
from xllm.engine.kernels.sampling.reference import sample_gumbel as reference_sample
from xllm.engine.layers.build_context import BuildContext, build_context
from xllm.engine.memory import KVPool
from xllm.engine.models import CausalLM, ModelInput, NullHooks, build_model
from xllm.engine.models.native_layers import NativeLayers, can_run_natively
from xllm.engine.platform import native_build
from xllm.engine.platform.native_build import NativeBuildError, build_library, usable_variants
from xllm.engine.runner.dummy_weights import fill_with_dummy_weights

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

TYPES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
VARIANTS = usable_variants(native_build.read_cpu_flags())


class Step:
    """Rows with their keys and values dense and in shuffled blocks; slots that nobody owns hold NaN."""

    def __init__(
        self,
        rows: list[tuple[int, int]],
        *,
        dtype: torch.dtype,
        kv_heads: int = 2,
        group: int = 2,
        dim: int = 16,
        size: int = 4,
        contiguous: bool = False,
        seed: int = 0,
    ) -> None:
        """``rows``: (new tokens, length) each."""
        generator = torch.Generator().manual_seed(seed)
        self.rows_, self.kv_heads, self.group, self.dim = rows, kv_heads, group, dim
        counts = [-(-length // size) for _, length in rows]
        num_blocks = sum(counts) + 3
        order = torch.randperm(num_blocks, generator=generator).tolist()
        tables = np.zeros((len(rows), max(counts)), dtype=np.int32)
        for i, count in enumerate(counts):
            tables[i, :count] = [order.pop() for _ in range(count)]
        self.dense = []
        if contiguous:
            shape, self.strides = (
                (num_blocks, size, kv_heads, dim),
                KVStrides(size, size * kv_heads * dim, dim, kv_heads * dim),
            )
        else:
            shape, self.strides = (
                (num_blocks, kv_heads, size, dim),
                KVStrides(size, size * kv_heads * dim, size * dim, dim),
            )
        self.pools = tuple(torch.full(shape, float("nan"), dtype=dtype) for _ in range(2))
        for pool in self.pools:
            values = [torch.randn(length, kv_heads, dim, generator=generator).to(dtype) for _, length in rows]
            self.dense.append(values)
            for i, value in enumerate(values):
                for t in range(len(value)):
                    block = pool[int(tables[i, t // size])]
                    (block if contiguous else block.transpose(0, 1))[t % size] = value[t]
        start = np.concatenate(([0], np.cumsum([n for n, _ in rows]))).astype(np.int64)
        self.rows = StepRows(start, np.array([n for _, n in rows], dtype=np.int64), tables)
        self.q = torch.randn(int(start[-1]), kv_heads * group, dim, generator=generator).to(dtype)

    def run(self, window: int | None = None, **options: int) -> torch.Tensor:
        return paged_attention(
            self.q, self.pools, self.strides, self.kv_heads, self.rows, 0.3, window, **options
        )

    def expected(self, window: int | None = None) -> torch.Tensor:
        """Float64, query by query."""
        out = torch.empty(self.q.shape, dtype=torch.float64)
        token = 0
        for i, (count, length) in enumerate(self.rows_):
            for at in range(length - count, length):
                first = 0 if window is None else max(at - window + 1, 0)
                k, v = (values[i][first : at + 1].double() for values in self.dense)
                for h in range(self.q.shape[1]):
                    weights = torch.softmax(k[:, h // self.group] @ self.q[token, h].double() * 0.3, 0)
                    out[token, h] = weights @ v[:, h // self.group]
                token += 1
        return out


MIXED = [(1, 1), (1, 37), (5, 5), (3, 70), (1, 64), (40, 130), (2, 65), (1, 129)]


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("window", [None, 1, 30])
def test_attention_of_a_mixed_batch(variant: str, dtype: torch.dtype, window: int | None) -> None:
    step = Step(MIXED, dtype=dtype)
    torch.testing.assert_close(
        step.run(window).double(), step.expected(window), rtol=0, atol=4 * TYPES[dtype]
    )


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "size"),
    [
        (1, 1, 8, 16),
        (1, 17, 32, 4),
        (3, 5, 80, 8),
        (2, 4, 128, 16),
        (1, 2, 256, 1),
        (2, 1, 64, 128),
        (1, 70, 16, 4),
    ],
)
def test_attention_shapes(dtype: torch.dtype, kv_heads: int, group: int, dim: int, size: int) -> None:
    step = Step([(1, 90), (9, 20), (1, 5)], dtype=dtype, kv_heads=kv_heads, group=group, dim=dim, size=size)
    torch.testing.assert_close(step.run().double(), step.expected(), rtol=0, atol=8 * TYPES[dtype])


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize(("dim", "size"), [(16, 4), (32, 16), (128, 16)])
@pytest.mark.parametrize("window", [None, 30])
def test_attention_of_the_contiguous_layout(
    variant: str, dtype: torch.dtype, dim: int, size: int, window: int | None
) -> None:
    blocks, contiguous = (
        Step(MIXED, dtype=dtype, dim=dim, size=size, contiguous=c, seed=3) for c in (False, True)
    )
    got = contiguous.run(window)
    assert torch.equal(blocks.run(window), got)
    torch.testing.assert_close(got.double(), contiguous.expected(window), rtol=0, atol=8 * TYPES[dtype])


@pytest.mark.parametrize("dtype", list(TYPES))
def test_a_query_depends_on_its_own_row_only(variant: str, dtype: torch.dtype) -> None:
    """Bit for bit: alone or in a batch, as a decode or inside any chunk, split over keys or not, by any threads."""
    whole = Step([(150, 2200), (30, 40), (1, 7)], dtype=dtype)
    together = whole.run(split_below=0)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(together, whole.run(split_below=10**6))
    for at in (0, 1, 63, 149):
        alone = replace(
            whole.rows,
            query_start=np.array([0, 1], dtype=np.int64),
            seq_lens=np.array([2200 - 150 + at + 1], dtype=np.int64),
            block_tables=np.ascontiguousarray(whole.rows.block_tables[:1]),
        )
        one = paged_attention(whole.q[at : at + 1], whole.pools, whole.strides, 2, alone, 0.3, None)
        assert torch.equal(one[0], together[at])


@pytest.mark.parametrize("dtype", list(TYPES))
def test_a_row_of_a_product_depends_on_itself_only(variant: str, dtype: torch.dtype) -> None:
    x, w = torch.randn(300, 64).to(dtype), torch.randn(130, 64).to(dtype)
    packed = pack_weight(w)
    together = linear(x, packed, None)
    expected = x.double() @ w.double().T
    torch.testing.assert_close(
        together.double(), expected, rtol=0, atol=float(TYPES[dtype] * expected.abs().max())
    )
    for begin, end in ((0, 1), (3, 9), (191, 300), (299, 300)):
        assert torch.equal(linear(x[begin:end], packed, None), together[begin:end])


@pytest.mark.parametrize("dtype", list(TYPES))
def test_rows_of_a_packed_weight(dtype: torch.dtype) -> None:
    w = torch.randn(70, 34).to(dtype)
    rows = torch.tensor([0, 69, 63, 64, 5])
    assert torch.equal(take_rows(pack_weight(w), rows), w[rows])


def test_nan_stays_visible(variant: str) -> None:
    step = Step([(1, 20), (1, 9)], dtype=torch.bfloat16)
    step.pools[0][int(step.rows.block_tables[0, 2]), :, 1] = float("nan")
    out = step.run()
    assert out[0].isnan().all() and out[1].isfinite().all()


def test_a_damaged_library_is_built_again(tmp_path: Path) -> None:
    (tmp_path / "one.cpp").write_text('extern "C" int one() { return 1; }')
    options = {"cache_dir": tmp_path / "cache", "source_dir": tmp_path}
    path = build_library("portable", **options)
    good = path.read_bytes()
    modified = path.stat().st_mtime_ns
    assert build_library("portable", **options) == path
    assert path.stat().st_mtime_ns == modified
    path.write_bytes(good[: len(good) // 2])
    assert build_library("portable", **options) == path
    assert ctypes.CDLL(str(path)).one() == 1
    (tmp_path / "one.cpp").write_text('extern "C" int one() { return 2; }')
    assert build_library("portable", **options) != path


def test_what_cannot_be_built_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NativeBuildError, match="no sources"):
        build_library("portable", cache_dir=tmp_path, source_dir=tmp_path)
    (tmp_path / "broken.cpp").write_text("int x = ;")
    with pytest.raises(NativeBuildError, match="error"):
        build_library("portable", cache_dir=tmp_path, source_dir=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeBuildError, match="no C\\+\\+ compiler"):
        build_library("portable", cache_dir=tmp_path)


def test_variants_need_their_cpu_flags() -> None:
    assert usable_variants(frozenset()) == ("portable",)
    assert usable_variants(frozenset({"avx2", "fma", "sse2"})) == ("avx2", "portable")


def small_model(kernels: str, dtype: torch.dtype, spec: ModelSpec) -> tuple[CausalLM, BuildContext]:
    """The same weights, rounded to bfloat16, whatever the dtype and the kernels."""
    context = build_context(dtype, torch.device("cpu"), kernels=parse_kernels(kernels))
    model = build_model(spec, context).eval()
    exact = build_model(spec, build_context(torch.float32, torch.device("cpu"))).eval()
    fill_with_dummy_weights(exact, 7)
    for mine, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        mine.data.copy_(theirs.data.to(torch.bfloat16))
    model.pack()
    return model, context


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("windows", [(None, None), (None, 5)])
def test_whole_layers(variant: str, has_bias: bool, windows: tuple[int | None, ...]) -> None:
    """Close to torch in float32; in bfloat16 no further from float32 than torch's bfloat16."""
    spec = ModelSpec(
        architecture="Qwen3ForCausalLM",
        hidden_size=96,
        intermediate_size=160,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=131,
        max_position=256,
        rms_norm_eps=1e-6,
        rope=RopeSpec(),
        tie_word_embeddings=True,
        has_qk_norm=not has_bias,
        has_qkv_bias=has_bias,
        has_o_bias=has_bias,
        has_mlp_bias=has_bias,
        windows=windows,
    )
    found = {}
    for name, kernels, dtype in (
        ("exact", "reference", torch.float32),
        ("native", "native", torch.float32),
        ("low", "reference", torch.bfloat16),
        ("native low", "native", torch.bfloat16),
    ):
        model, context = small_model(kernels, dtype, spec)
        layout = spec.kv_layout(block_size=4, dtype=str(dtype).removeprefix("torch."))
        kv = KVPool(layout, 16, torch.device("cpu"))
        planner = AttentionPlanner(
            block_size=4,
            num_kv_heads=2,
            head_dim=32,
            dtype=dtype,
            windows=windows,
            device=torch.device("cpu"),
            max_gather_bytes=2**20,
        )
        tables = np.array([[3, 1, 7, 9], [0, 2, 8, 5]], dtype=np.int32)
        outs = []
        for queries, start in (([9, 4], [0, 0]), ([1, 6], [9, 4]), ([1, 1], [10, 10])):
            at = [np.arange(b, b + n) for n, b in zip(queries, start, strict=True)]
            slots = np.concatenate([tables[i, a // 4] * 4 + a % 4 for i, a in enumerate(at)]).astype(np.int64)
            positions = np.concatenate(at)
            inp = ModelInput(
                token_ids=torch.from_numpy((positions * 37 + 11) % 131),
                positions=torch.from_numpy(positions),
                attention=planner.plan(queries, np.add(start, queries), tables, slots),
                logits_indices=torch.arange(len(positions)),
            )
            if kernels == "native":
                assert can_run_natively(model) and isinstance(context.attention, NativeAttention)
                hidden = NativeLayers(model, context.attention).forward(inp, kv, NullHooks())
                wide = NativeLayers(
                    model,
                    context.attention,
                    num_wide_threads=torch.get_num_threads() + 1,
                    min_wide_flops=len(positions) * 1e4,
                )
                assert torch.equal(wide.forward(inp, kv, NullHooks()), hidden)
                assert wide.num_wide_steps == 1
                never = NativeLayers(model, context.attention, num_wide_threads=8, min_wide_flops=1e12)
                never.forward(inp, kv, NullHooks())
                assert never.num_wide_steps == 0
            else:
                hidden = model(inp, kv)
            outs.append(model.compute_logits(hidden))
        found[name] = torch.cat(outs).double()
    scale = float(found["exact"].abs().max())
    torch.testing.assert_close(found["native"], found["exact"], rtol=0, atol=1e-5 * scale)
    errors = {name: float((found[name] - found["exact"]).abs().mean()) for name in ("low", "native low")}
    assert 0 < errors["native low"] < 1.1 * errors["low"], errors


@pytest.mark.parametrize("vocab", [50, 4001])
@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("filters", ["none", "top_k", "top_p", "min_p", "all"])
def test_sampling_draws_what_the_reference_draws(
    variant: str, vocab: int, spread: float, filters: str
) -> None:
    rows = 60
    logits = torch.randn(rows, vocab) * spread
    logits[::5] = logits[::5].round()  # ties
    logits[3, : vocab // 2] = float("-inf")
    options = {
        "temperature": torch.rand(rows) * 2 + 0.01,
        "top_k": torch.randint(0, vocab, (rows,))
        if filters in ("top_k", "all")
        else torch.zeros(rows, dtype=torch.int64),
        "top_p": torch.rand(rows) if filters in ("top_p", "all") else torch.ones(rows),
        "min_p": torch.rand(rows) * 0.2 if filters in ("min_p", "all") else torch.zeros(rows),
        "seeds": torch.randint(-(2**62), 2**62, (rows,)),
        "choices": torch.randint(0, 3, (rows,)),
        "positions": torch.randint(0, 9999, (rows,)),
    }
    wanted = reference_sample(logits, **options)
    got = native_sample(logits, **options)
    assert int((got != wanted).sum()) <= 1  # a tie within the last bit of a logarithm


@pytest.mark.parametrize("spread", [0.01, 0.5, 6.0])
@pytest.mark.parametrize("filters", ["top_k", "top_k top_p", "top_k top_p min_p"])
@pytest.mark.parametrize("has_ties", [False, True])
def test_a_large_top_k_over_a_large_vocabulary(
    variant: str, spread: float, filters: str, has_ties: bool
) -> None:
    """More than one in 64 of over 4096 logits: the threshold is found by the histogram. Flat to peaked rows."""
    rows, vocab = 150, 8192 + 5
    generator = torch.Generator().manual_seed(int(spread * 100) + has_ties)
    logits = torch.randn(rows, vocab, generator=generator) * spread
    if has_ties:
        logits = (logits / spread * 4).round() * (spread / 4)
    logits[7, : vocab // 3] = float("-inf")
    draw = torch.rand(rows, 3, generator=generator)
    ones, zeros = torch.ones(rows), torch.zeros(rows)
    options = {
        "temperature": torch.rand(rows, generator=generator) + 0.5,
        "top_k": torch.randint(vocab // 64 + 2, vocab, (rows,), generator=generator),
        "top_p": 0.05 + 0.95 * draw[:, 0] if "top_p" in filters else ones,
        "min_p": torch.where(draw[:, 1] < 0.3, zeros, draw[:, 2].square()) if "min_p" in filters else zeros,
        "seeds": torch.randint(-(2**62), 2**62, (rows,), generator=generator),
        "choices": torch.randint(0, 3, (rows,), generator=generator),
        "positions": torch.arange(rows),
    }
    options["top_k"][:3] = torch.tensor([vocab // 64 + 2, vocab - 1, 4096])
    wanted = reference_sample(logits, **options)
    got = native_sample(logits, **options)
    assert int((got != wanted).sum()) <= 1  # a tie within the last bit of a logarithm


@pytest.mark.parametrize("spread", [0.01, 0.7])
@pytest.mark.parametrize("has_ties", [False, True])
def test_the_histogram_cuts_exactly(variant: str, spread: float, has_ties: bool) -> None:
    """Filters that just let the unfiltered winner through draw it; those that just do not draw another token."""
    rows, vocab = 120, 8192
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(rows, vocab, generator=generator) * spread
    if has_ties:
        logits = (logits / spread * 60).round() * (spread / 60)
    open_ = {
        "temperature": torch.rand(rows, generator=generator) + 0.5,
        "top_k": torch.zeros(rows, dtype=torch.int64),
        "top_p": torch.ones(rows),
        "min_p": torch.zeros(rows),
        "seeds": torch.arange(rows),
        "choices": torch.zeros(rows, dtype=torch.int64),
        "positions": torch.arange(rows),
    }
    winner = reference_sample(logits, **open_)
    scaled = (logits - logits.amax(1, keepdim=True)) / open_["temperature"][:, None]
    value = scaled.gather(1, winner[:, None])
    num_better, num_equal = (scaled > value).sum(1), (scaled == value).sum(1)
    kept = (num_better > vocab // 64 + 2) & (num_better + num_equal < vocab - 300)
    assert int(kept.sum()) >= 30 and (int(num_equal.max()) > 1) == has_ties
    weights = scaled.double().exp()
    wide = num_better + num_equal + 200
    limit = scaled.sort(1, descending=True).values.gather(1, wide[:, None].clamp(max=vocab) - 1)
    total = torch.where(scaled >= limit, weights, 0.0).sum(1)
    before = torch.where(scaled > value, weights, 0.0).sum(1)
    own = torch.where(scaled == value, weights, 0.0).sum(1)
    last = scaled.masked_fill(scaled <= value, float("inf")).amin(1, keepdim=True)
    last_mass = torch.where(scaled == last, weights, 0.0).sum(1)
    cases: list[tuple[bool, dict[str, torch.Tensor]]] = [
        (True, {"top_k": num_better + 1}),
        (True, {"top_k": num_better + num_equal}),
        (False, {"top_k": num_better}),
        (True, {"top_k": wide, "top_p": (before + 0.5 * own) / total}),
        (False, {"top_k": wide, "top_p": (before - 0.5 * last_mass) / total}),
        (True, {"top_k": num_better + 1, "top_p": 1 - 0.5 * own / (before + own)}),
    ]
    if has_ties:  # far enough apart for a float32 probability
        middle = ((value + last) / 2).exp()[:, 0]
        cases += [
            (True, {"top_k": wide, "min_p": (value * 1.0001).exp()[:, 0]}),
            (False, {"top_k": wide, "min_p": middle}),
            (False, {"top_k": wide, "min_p": middle, "top_p": torch.full((rows,), 0.999999)}),
        ]
    for is_in, changes in cases:
        options = open_ | {name: x if name == "top_k" else x.float() for name, x in changes.items()}
        got, wanted = native_sample(logits, **options), reference_sample(logits, **options)
        assert torch.equal((got == winner)[kept], torch.full_like(kept, is_in)[kept]), (is_in, list(changes))
        assert int((got != wanted)[kept].sum()) <= 1, (is_in, list(changes))


def test_sampling_survives_broken_rows() -> None:
    logits = torch.zeros(3, 40)
    logits[0, 7], logits[1], logits[2, 3] = float("nan"), float("-inf"), float("inf")
    ones, zeros = torch.ones(3), torch.zeros(3, dtype=torch.int64)
    got = native_sample(
        logits,
        temperature=ones,
        top_k=zeros,
        top_p=ones * 0.5,
        min_p=zeros.float(),
        seeds=zeros,
        choices=zeros,
        positions=zeros,
    )
    assert ((got >= 0) & (got < 40)).all()
