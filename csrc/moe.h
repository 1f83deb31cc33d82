// Mixture of experts: a softmax router over gated MLPs. Tokens are brought together by expert, so that the weights of an
// expert are read once for all its tokens; threads share blocks of 64 columns, whoever is free takes the next one.
//
// A token's result depends on itself only: every product is summed over its input in order, and the token's experts are
// added in ascending order, whatever else is in the batch.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>
#include "gemm.h"
#include "parts.h"

#define MOE_TOKENS 512 // worked on together: bounds the memory of what lies between the products

struct MoeArgs {
    const void *router, *gate_up, *down; // packed; of every expert [blocks][k][64]
    int64_t hidden, inner, experts, top_k, is_normed;
};

struct MoeWork { // shared by the threads of a call
    std::vector<char> memory;
    std::vector<int32_t> start;    // [experts + 1] rows of an expert
    std::vector<int32_t> used;     // experts that some token chose
    std::vector<int32_t> next;     // [experts] row of an expert that is taken next
    std::atomic<long> taken{0};
    float *logits, *weight, *result; int32_t *expert, *row, *token; // weight, expert and row [tokens][top_k]; token [rows]
    void *x, *up, *act;
    void prepare(const MoeArgs &a, long tokens, long element) {
        const long n = std::min(tokens, (long)MOE_TOKENS), pairs = n * a.top_k;
        size_t at = 0;
        auto place = [&](size_t bytes) { size_t r = at; at += (bytes + 63) / 64 * 64; return r; };
        const size_t l = place(n * a.experts * 4), w = place(pairs * 4), e = place(pairs * 4), r = place(pairs * 4), t = place(pairs * 4);
        const size_t h = place(pairs * a.hidden * element), u = place(pairs * 2 * a.inner * element), c = place(pairs * a.inner * element);
        const size_t o = place(pairs * a.hidden * 4);
        if (memory.size() < at + 64) std::vector<char>(at + 64).swap(memory);
        char *p = (char *)(((uintptr_t)memory.data() + 63) / 64 * 64);
        logits = (float *)(p + l); weight = (float *)(p + w); expert = (int32_t *)(p + e); row = (int32_t *)(p + r); token = (int32_t *)(p + t);
        x = p + h; up = p + u; act = p + c; result = (float *)(p + o);
        start.resize(a.experts + 1); used.reserve(a.experts); next.resize(a.experts);
    }
};

// The top_k experts of one token by probability, ascending by number; equal probabilities: the lower number.
static void route(float *logits, long experts, long top_k, bool is_normed, float *weight, int32_t *chosen) {
    float peak = -INFINITY, sum = 0, kept = 0;
    for (long e = 0; e < experts; e++) peak = logits[e] > peak || logits[e] != logits[e] ? logits[e] : peak;
    for (long e = 0; e < experts; e++) sum += logits[e] = expf(logits[e] - peak);
    for (long k = 0; k < top_k; k++) {
        long best = -1;
        for (long e = 0; e < experts; e++)
            if (std::find(chosen, chosen + k, e) == chosen + k && (best < 0 || logits[e] > logits[best])) best = e;
        chosen[k] = best;
    }
    std::sort(chosen, chosen + top_k);
    for (long k = 0; k < top_k; k++) kept += weight[k] = logits[chosen[k]] / sum;
    if (is_normed) for (long k = 0; k < top_k; k++) weight[k] /= kept;
}

static void group_by_expert(MoeWork &w, const MoeArgs &a, long tokens) {
    std::fill(w.start.begin(), w.start.end(), 0);
    for (long i = 0; i < tokens * a.top_k; i++) w.start[w.expert[i] + 1]++;
    w.used.clear();
    for (long e = 0; e < a.experts; e++) {
        if (w.start[e + 1]) w.used.push_back(e);
        w.start[e + 1] += w.start[e];
    }
    std::copy(w.start.begin(), w.start.end() - 1, w.next.begin());
    for (long i = 0; i < tokens * a.top_k; i++) { // rows of an expert in the order of the tokens
        w.row[i] = w.next[w.expert[i]]++;
        w.token[w.row[i]] = i / a.top_k;
    }
}

// 64 columns of y [rows][n] = x [rows][k] * one packed block of weights.
template <typename T, typename O>
static void expert_block(const T *x, long rows, const T *block, long k_count, O *y, long n, long width) {
    const long chunk = rows <= 2 * GROUP_ROWS ? 128 : 1024;
    for (long m = 0; m < rows; m += GROUP_ROWS) {
        const long count = std::min(rows - m, (long)GROUP_ROWS);
        float tile[GROUP_ROWS * BLOCK] __attribute__((aligned(64)));
        for (long k0 = 0; k0 < k_count; k0 += chunk) {
            const long k = std::min(k_count - k0, chunk);
            const T *a = x + m * k_count + k0, *b = block + k0 * BLOCK;
            const long first = m == 0 ? std::min(count, (long)MAX_ROWS) : 0; // the first rows fetch ahead
            if (first) product<4>(first, a, k_count, b, BLOCK, k, BLOCK, tile, BLOCK, k0 > 0, (const char *)b + AHEAD_BYTES);
            product<0>(count - first, a + first * k_count, k_count, b, BLOCK, k, BLOCK, tile + first * BLOCK, BLOCK, k0 > 0);
        }
        for (long r = 0; r < count; r++) {
            O *o = y + (m + r) * n;
            if (width == BLOCK) for (long i = 0; i < BLOCK; i += W) store(o + i, load(tile + r * BLOCK + i));
            else for (long i = 0; i < width; i++) from_float(o + i, tile[r * BLOCK + i]);
        }
    }
}

// y [rows][n] = x [rows][k] * the rows' own expert. Ends with a barrier.
template <typename T, typename O> static void experts_product(MoeWork &w, const T *x, const void *packed, long n, long k, O *y) {
    const long blocks = (n + BLOCK - 1) / BLOCK, items = (long)w.used.size() * blocks;
    for (long item; (item = w.taken++) < items;) {
        const long e = w.used[item / blocks], block = item % blocks, begin = w.start[e], rows = w.start[e + 1] - begin;
        const T *b = (const T *)packed + (e * blocks + block) * BLOCK * k;
        expert_block(x + begin * k, rows, b, k, y + begin * n + block * BLOCK, n, std::min(n - block * BLOCK, (long)BLOCK));
    }
#pragma omp barrier
}

// out [tokens][hidden] = (or +=) the sum over each token's experts. All threads of a parallel region; no barrier at the end.
template <typename T, typename O>
static void moe(const MoeArgs &a, MoeWork &w, const T *x, long tokens, O *out, Finish finish, int id, int nt) {
    const long d = a.hidden;
    for (long t0 = 0; t0 < tokens; t0 += MOE_TOKENS) {
        const long n = std::min(tokens - t0, (long)MOE_TOKENS), rows = n * a.top_k;
        const T *h = x + t0 * d; O *o = out + t0 * d;
        long begin, end; shares(n, id, nt, begin, end);
        linear_share(h, n, (const T *)a.router, a.experts, d, (const T *)nullptr, w.logits, WRITE, id, nt);
#pragma omp barrier
        for (long t = begin; t < end; t++)
            route(w.logits + t * a.experts, a.experts, a.top_k, a.is_normed, w.weight + t * a.top_k, w.expert + t * a.top_k);
#pragma omp barrier
        if (id == 0) group_by_expert(w, a, n), w.taken = 0;
#pragma omp barrier
        long row, last; shares(rows, id, nt, row, last);
        for (; row < last; row++) memcpy((T *)w.x + row * d, h + w.token[row] * d, d * sizeof(T));
#pragma omp barrier
        experts_product<T, T>(w, (const T *)w.x, a.gate_up, 2 * a.inner, d, (T *)w.up);
        if (id == 0) w.taken = 0;
        silu_mul_share((const T *)w.up, rows, a.inner, (T *)w.act, id, nt);
#pragma omp barrier
        experts_product<T, float>(w, (const T *)w.act, a.down, d, a.inner, w.result);
        for (long t = begin; t < end; t++)
            for (long i = 0; i < d; i += W) {
                const long width = std::min(d - i, (long)W);
                float sum[W] = {};
                for (long k = 0; k < a.top_k; k++) {
                    const float *r = w.result + w.row[t * a.top_k + k] * d + i, by = w.weight[t * a.top_k + k];
                    for (long j = 0; j < width; j++) sum[j] += by * r[j];
                }
                for (long j = 0; j < width; j++) from_float(o + t * d + i + j, finish == ADD_TO ? to_float(o[t * d + i + j]) + sum[j] : sum[j]);
            }
    }
}
