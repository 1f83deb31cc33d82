// The C interface of the CPU kernels; see docs/concepts/cpu-kernels.md. Plain C types only. Tensors are dense unless a
// stride is given. type: 0 = float32, 1 = bfloat16. threads: of the parallel region. Functions that compute return a
// Status; no exception leaves this file. What a call needs is allocated before its parallel region; what belongs to one
// thread is allocated by it, and a thread that gets no memory says so in a flag, does nothing and meets the others at the
// barriers. The output of a call that failed is undefined.
#include <exception>
#include <new>
#include <omp.h>
#include <sys/mman.h>
#include "attention.h"
#include "moe.h"
#include "parts.h"
#include "sampling.h"
#include "scoring.h"

#define ABI_VERSION 2

template <typename F> static void with_type(int type, F f) { if (type) f(bf16()); else f(float()); }

enum Status { OK = 0, NO_MEMORY = 1, FAILED = 2 };
struct Failure { // of any thread of a call
    std::atomic<int> status{OK};
    void note(int found) { if (found != OK) status = found; }
};
template <typename F> static int guarded(F f) {
    try { f(); return OK; }
    catch (const std::bad_alloc &) { return NO_MEMORY; }
    catch (const std::exception &) { return FAILED; }
}

static thread_local AttentionPlan attention_plans[2]; // of layers without and with a window
template <typename T> static Scratch<T> &scratch() { static thread_local Scratch<T> s; return s; }

static AttentionPlan &planned(int type, const AttentionArgs &a, int64_t step) {
    AttentionPlan &plan = attention_plans[a.window != 0];
    plan_attention(a, plan, step, type && HAS_DOT_BF16);
    return plan;
}

// Inside a parallel region; ends with a barrier. A thread knows its next job while it does one.
template <typename T> static void attend(const AttentionArgs &a, AttentionPlan &plan, Failure &failure, int id, int nt) {
    const Attention<T> attention(a, plan);
    Scratch<T> &s = scratch<T>();
    const int prepared = guarded([&] { s.prepare(attention.row_capacity(), a.head_dim); });
    failure.note(prepared);
    for (Phase &phase : plan.phases) {
        const long count = prepared == OK ? phase.jobs.size() : 0;
        for (long mine = id; mine < count;) {
            const long next = nt + phase.taken++;
            attention.run(s, phase.jobs[mine], next < count ? &phase.jobs[next] : nullptr);
            mine = next;
        }
#pragma omp barrier
    }
}

struct LayerArgs { // weights of one layer, packed where they are matrices; absent parts are null
    const void *attention_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *out_bias, *mlp_norm, *gate_up, *gate_up_bias, *down, *down_bias;
    int64_t hidden, intermediate;
    const MoeArgs *moe; // instead of gate_up and down
    float eps;
};
static MoeWork &moe_work() { static thread_local MoeWork work; return work; }

template <typename T> static void layer(const LayerArgs &l, HeadsArgs heads, AttentionArgs att, AttentionPlan &plan, Failure &failure, float *x, int threads) {
    static thread_local std::vector<char> memory;
    const long n = heads.num_tokens, d = l.hidden, q_width = heads.heads * heads.head_dim, width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
    auto rounded = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    const size_t h_bytes = rounded(n * d * sizeof(T)), qkv_bytes = rounded(n * width * sizeof(T)), q_bytes = rounded(n * q_width * sizeof(T));
    const size_t up_bytes = rounded(n * 2 * l.intermediate * sizeof(T)), act_bytes = rounded(n * l.intermediate * sizeof(T));
    const size_t need = h_bytes + std::max(qkv_bytes + 2 * q_bytes, up_bytes + act_bytes) + 64;
    if (memory.size() < need) std::vector<char>(need).swap(memory);
    char *p = (char *)(((uintptr_t)memory.data() + 63) / 64 * 64);
    T *h = (T *)p, *qkv = (T *)(p + h_bytes), *q = (T *)(p + h_bytes + qkv_bytes), *out = (T *)(p + h_bytes + qkv_bytes + q_bytes);
    T *up = (T *)(p + h_bytes), *act = (T *)(p + h_bytes + up_bytes);
    heads.qkv = qkv; heads.q = q; heads.q_norm = l.q_norm; heads.k_norm = l.k_norm; heads.eps = l.eps;
    att.q = q; att.q_stride = q_width; att.out = out;
    MoeWork *work = &moe_work(); // of the calling thread
    if (l.moe) work->prepare(*l.moe, n, sizeof(T));
#pragma omp parallel num_threads(threads)
    {
        const int id = omp_get_thread_num(), nt = omp_get_num_threads();
        fetch_share((const T *)l.qkv, n, width, d, id, nt);
        rms_norm_share(x, n, 1, d, (const T *)l.attention_norm, d, l.eps, h, id, nt);
#pragma omp barrier
        linear_share(h, n, (const T *)l.qkv, width, d, (const T *)l.qkv_bias, qkv, WRITE, id, nt);
#pragma omp barrier
        fetch_share((const T *)l.out, n, d, q_width, id, nt);
        heads_share<T>(heads, id, nt);
#pragma omp barrier
        attend<T>(att, plan, failure, id, nt);
        linear_share(out, n, (const T *)l.out, d, q_width, (const T *)l.out_bias, x, ADD_TO, id, nt);
#pragma omp barrier
        fetch_share((const T *)l.gate_up, n, 2 * l.intermediate, d, id, nt);
        rms_norm_share(x, n, 1, d, (const T *)l.mlp_norm, d, l.eps, h, id, nt);
#pragma omp barrier
        if (l.moe) {
            moe<T, float>(*l.moe, *work, h, n, x, ADD_TO, id, nt);
        } else {
            linear_share(h, n, (const T *)l.gate_up, 2 * l.intermediate, d, (const T *)l.gate_up_bias, up, WRITE, id, nt);
            fetch_share((const T *)l.down, n, d, l.intermediate, id, nt);
#pragma omp barrier
            silu_mul_share(up, n, l.intermediate, act, id, nt);
#pragma omp barrier
            linear_share(act, n, (const T *)l.down, d, l.intermediate, (const T *)l.down_bias, x, ADD_TO, id, nt);
        }
    }
}

extern "C" {
int xllm_abi_version() { return ABI_VERSION; }
int xllm_vector_width() { return W; }
int xllm_has_dot_bf16() { return HAS_DOT_BF16; }

// weight [n][k] -> out [ceil(n / 64)][k][64] (bf16: [k / 2][64][2]); k is even for bf16
void xllm_pack(int type, const void *weight, void *out, int64_t n, int64_t k, int threads) {
    const long blocks = (n + BLOCK - 1) / BLOCK, bytes = blocks * BLOCK * k * (type ? 2 : 4);
    const uintptr_t huge = 1 << 21, begin = ((uintptr_t)out + huge - 1) / huge * huge, end = ((uintptr_t)out + bytes) / huge * huge;
    if (end > begin) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
        if (threads <= 1) { // a loader's thread: OpenMP would start a team for it, and pin it
            for (long b = 0; b < blocks; b++) pack_block((const T *)weight, (T *)out, n, k, b);
            return;
        }
#pragma omp parallel for num_threads(threads)
        for (long b = 0; b < blocks; b++) pack_block((const T *)weight, (T *)out, n, k, b);
    });
}

// Of bytes, a multiple of 4096: chains of odd multiplications, 32 side by side, in segments of 1 MiB. Any change within one
// 8-byte word shows for certain; this is against damage, not against attackers.
int xllm_checksum(const void *data, int64_t bytes, uint64_t *out, int threads) {
    const long words = 1 << 17, total = bytes / 8, segments = (total + words - 1) / words;
    std::vector<uint64_t> sums;
    if (const int status = guarded([&] { sums.resize(segments); })) return status;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long s = 0; s < segments; s++) {
        const uint64_t *w = (const uint64_t *)data + s * words, *end = w + std::min(words, total - s * words);
        uint64_t h[32];
        for (int j = 0; j < 32; j++) h[j] = j + 1;
        for (; w < end; w += 32)
            for (int j = 0; j < 32; j++) h[j] = (h[j] ^ w[j]) * 0x9e3779b97f4a7c15ull;
        uint64_t sum = 0;
        for (int j = 0; j < 32; j++) sum = mix(sum ^ h[j]);
        sums[s] = sum;
    }
    uint64_t sum = bytes;
    for (uint64_t part : sums) sum = mix(sum ^ part);
    *out = sum;
    return OK;
}

void xllm_unpack_rows(int type, const void *packed, const int64_t *rows, int64_t count, int64_t k, void *out, int threads) {
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
#pragma omp parallel for num_threads(threads) if (count > 8)
        for (long i = 0; i < count; i++) unpack_row((const T *)packed, rows[i], k, (T *)out + i * k);
    });
}

// y [m][n] = x [m][k] w^T (+ bias); y is of the type of x, or float32
void xllm_linear(int type, int out_type, const void *x, const void *packed, const void *bias, void *y, int64_t m, int64_t n, int64_t k, int threads) {
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
        with_type(out_type, [&](auto o) {
            typedef decltype(o) O;
#pragma omp parallel num_threads(threads)
            linear_share((const T *)x, m, (const T *)packed, n, k, (const T *)bias, (O *)y, WRITE, omp_get_thread_num(), omp_get_num_threads());
        });
    });
}

void xllm_rms_norm(int type, const void *x, int64_t rows, int64_t inner, int64_t stride, const void *weight, int64_t dim, float eps, void *out, int threads) {
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
#pragma omp parallel num_threads(threads)
        rms_norm_share((const T *)x, rows, inner, stride, (const T *)weight, dim, eps, (T *)out, omp_get_thread_num(), omp_get_num_threads());
    });
}

void xllm_silu_mul(int type, const void *gate_up, int64_t tokens, int64_t width, void *out, int threads) {
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
#pragma omp parallel num_threads(threads)
        silu_mul_share((const T *)gate_up, tokens, width, (T *)out, omp_get_thread_num(), omp_get_num_threads());
    });
}

void xllm_heads(int type, const HeadsArgs *args, int threads) {
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
#pragma omp parallel num_threads(threads)
        heads_share<T>(*args, omp_get_thread_num(), omp_get_num_threads());
    });
}

// k, v [T][kv_heads][dim] -> their slots, in pairs order; rows as HeadsArgs::write_rows
void xllm_store_pairs(int type, const void *k, const void *v, const int64_t *rows, int64_t count, int64_t dim, void *k_pool, void *v_pool, int threads) {
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
#pragma omp parallel for num_threads(threads) if (count > 64)
        for (long i = 0; i < count; i++) store_pairs((const T *)k + i * dim, (const T *)v + i * dim, rows[i], dim, (T *)k_pool, (T *)v_pool);
    });
}

int xllm_attention(int type, const AttentionArgs *args, int64_t step, int threads) {
    Failure failure;
    const int status = guarded([&] {
        AttentionPlan &plan = planned(type, *args, step);
        with_type(type, [&](auto t) {
            typedef decltype(t) T;
#pragma omp parallel num_threads(threads)
            attend<T>(*args, plan, failure, omp_get_thread_num(), omp_get_num_threads());
        });
    });
    return status != OK ? status : failure.status.load();
}

int64_t xllm_num_shared_tiles() { return AttentionPlan::num_shared_ever; }

// x [tokens][hidden] -> out [tokens][hidden]
int xllm_moe(int type, const MoeArgs *args, const void *x, int64_t tokens, void *out, int threads) {
    MoeWork &work = moe_work();
    return guarded([&] {
        with_type(type, [&](auto t) {
            typedef decltype(t) T;
            work.prepare(*args, tokens, sizeof(T));
#pragma omp parallel num_threads(threads)
            moe<T, T>(*args, work, (const T *)x, tokens, (T *)out, WRITE, omp_get_thread_num(), omp_get_num_threads());
        });
    });
}

// One whole layer over the float32 residual stream x [T][hidden].
int xllm_layer(int type, const LayerArgs *args, const HeadsArgs *heads, const AttentionArgs *attention, float *x, int64_t step, int threads) {
    Failure failure;
    const int status = guarded([&] {
        AttentionPlan &plan = planned(type, *attention, step);
        with_type(type, [&](auto t) { layer<decltype(t)>(*args, *heads, *attention, plan, failure, x, threads); });
    });
    return status != OK ? status : failure.status.load();
}

// x float32 [rows][dim] -> out of the type of the weight
void xllm_final_norm(int type, const float *x, int64_t rows, const void *weight, int64_t dim, float eps, void *out, int threads) {
    with_type(type, [&](auto t) {
        typedef decltype(t) T;
#pragma omp parallel num_threads(threads)
        rms_norm_share(x, rows, 1, dim, (const T *)weight, dim, eps, (T *)out, omp_get_thread_num(), omp_get_num_threads());
    });
}

int xllm_sample(const float *logits, int64_t rows, int64_t vocab, const float *temperature, const int64_t *top_k, const float *top_p,
                const float *min_p, const int64_t *seeds, const int64_t *choices, const int64_t *positions, int64_t *out, int threads) {
    Failure failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long r = 0; r < rows; r++) {
        static thread_local RowSampler sampler;
        const uint64_t key = mix(mix(mix((uint64_t)seeds[r]) ^ (uint64_t)choices[r]) ^ (uint64_t)positions[r]);
        failure.note(guarded([&] { out[r] = sampler.draw(logits + r * vocab, vocab, std::max(temperature[r], 1e-10f), top_k[r], top_p[r], min_p[r], key); }));
    }
    return failure.status;
}

// Of every row its largest value, and where that stands first; NaN if it has one.
void xllm_largest(const float *logits, int64_t rows, int64_t vocab, float *best, int64_t *at, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long r = 0; r < rows; r++) best[r] = largest_of(logits + r * vocab, vocab, at[r]);
}

void xllm_penalise(float *logits, int64_t vocab, const PenaltyArgs *rows, int64_t count, int threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long i = 0; i < count; i++) penalise(logits + rows[i].row * vocab, rows[i]);
}

// Of count rows of logits: one token each, and the num_top[i] <= max_top best ones (out [count][max_top]).
int xllm_score(const float *logits, int64_t vocab, const int64_t *rows, const int64_t *tokens, const int64_t *num_top, int64_t count,
               int64_t max_top, float *logprobs, int64_t *ranks, int64_t *top_ids, float *top_logprobs, int threads) {
    Failure failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long i = 0; i < count; i++) {
        static thread_local Largest largest;
        failure.note(guarded([&] { score(largest, logits + rows[i] * vocab, vocab, tokens[i], num_top[i], logprobs + i, ranks + i, top_ids + i * max_top, top_logprobs + i * max_top); }));
    }
    return failure.status;
}
}
