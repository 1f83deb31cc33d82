// The parts of a layer that are neither products nor attention. Each computes the share of thread id of nt, by tokens,
// with float32 in between and one rounding at the end; there is no barrier inside.
#pragma once
#include <algorithm>
#include "vec.h"

INLINE void shares(long count, int id, int nt, long &begin, long &end) { begin = count * id / nt; end = count * (id + 1) / nt; }

template <typename I> INLINE float inverse_rms(const I *x, long dim, float eps) {
    vf sum = {}; long d = 0;
    for (; d + W <= dim; d += W) { vf v = load(x + d); sum += v * v; }
    float total = sum_of(sum);
    for (; d < dim; d++) total += to_float(x[d]) * to_float(x[d]);
    return 1.0f / sqrtf(total / dim + eps);
}

// out [rows][dim] = x / rms(x) * weight; rows of x are stride elements apart, in runs of inner rows dim apart.
template <typename I, typename T>
static void rms_norm_share(const I *x, long rows, long inner, long stride, const T *weight, long dim, float eps, T *out, int id, int nt) {
    long begin, end; shares(rows, id, nt, begin, end);
    for (long r = begin; r < end; r++) {
        const I *a = x + r / inner * stride + r % inner * dim; T *o = out + r * dim;
        const float by = inverse_rms(a, dim, eps); long d = 0;
        for (; d + W <= dim; d += W) store(o + d, load(a + d) * by * load(weight + d));
        for (; d < dim; d++) from_float(o + d, to_float(a[d]) * by * to_float(weight[d]));
    }
}

// One head: optional norm, then rotation of (i, i + dim / 2); cos and sin [dim] as the rotary kernel takes them.
template <typename T> INLINE void norm_rotate(const T *x, const T *norm, float eps, const float *cos, const float *sin, long dim, T *out) {
    const long half = dim / 2; long d = 0;
    const float by = norm ? inverse_rms(x, dim, eps) : 1.0f;
    for (; d + W <= half; d += W) {
        vf a = load(x + d), b = load(x + half + d);
        if (norm) a = a * by * load(norm + d), b = b * by * load(norm + half + d);
        store(out + d, a * load(cos + d) + b * load(sin + d));
        store(out + half + d, b * load(cos + half + d) + a * load(sin + half + d));
    }
    for (; d < half; d++) {
        float a = to_float(x[d]), b = to_float(x[half + d]);
        if (norm) a = a * by * to_float(norm[d]), b = b * by * to_float(norm[half + d]);
        from_float(out + d, a * cos[d] + b * sin[d]);
        from_float(out + half + d, b * cos[half + d] + a * sin[half + d]);
    }
}

struct HeadsArgs {
    const void *qkv, *q_norm, *k_norm; void *q, *k_pool, *v_pool;
    const float *cos, *sin; const int64_t *write_rows; const int64_t *write_tokens; // as the KV write kernel takes them
    int64_t num_tokens, num_written, heads, kv_heads, head_dim, is_all_written;
    int64_t is_paired; // the order of the pools
    float eps;
};

// One head of a token into its slot of a block in pairs order, which is that of the dot products: of every 16 tokens, keys
// lie as [dim / 2][16][2], values as [8][dim][2]. row: as in the plain order, [blocks, heads, slots].
template <typename T> INLINE void store_pairs(const T *k, const T *v, long row, long dim, T *k_pool, T *v_pool) {
    const long slot = row % 16;
    T *keys = k_pool + (row - slot) * dim + slot * 2, *values = v_pool + (row - slot) * dim + slot / 2 * 2 * dim + slot % 2;
    for (long d = 0; d < dim; d += 2) memcpy(keys + d * 16, k + d, 2 * sizeof(T));
    for (long d = 0; d < dim; d++) values[2 * d] = v[d];
}
#define MAX_PAIRED_DIM 512

// qkv [T][heads + 2 kv_heads][dim] -> q rotated [T][heads][dim]; k rotated and v into their slots.
template <typename T> static void heads_share(const HeadsArgs &a, int id, int nt) {
    const T *qkv = (const T *)a.qkv; const long dim = a.head_dim, width = (a.heads + 2 * a.kv_heads) * dim;
    long begin, end; shares(a.num_tokens, id, nt, begin, end);
    for (long t = begin; t < end; t++)
        for (long h = 0; h < a.heads; h++)
            norm_rotate(qkv + t * width + h * dim, (const T *)a.q_norm, a.eps, a.cos + t * dim, a.sin + t * dim, dim, (T *)a.q + (t * a.heads + h) * dim);
    shares(a.num_written, id, nt, begin, end);
    for (long i = begin; i < end; i++) {
        const long t = a.is_all_written ? i : a.write_tokens[i];
        const T *k = qkv + t * width + a.heads * dim, *v = k + a.kv_heads * dim;
        for (long h = 0; h < a.kv_heads; h++) {
            const long row = a.write_rows[i * a.kv_heads + h], at = row * dim;
            if (a.is_paired) {
                T rotated[MAX_PAIRED_DIM];
                norm_rotate(k + h * dim, (const T *)a.k_norm, a.eps, a.cos + t * dim, a.sin + t * dim, dim, rotated);
                store_pairs(rotated, v + h * dim, row, dim, (T *)a.k_pool, (T *)a.v_pool);
                continue;
            }
            norm_rotate(k + h * dim, (const T *)a.k_norm, a.eps, a.cos + t * dim, a.sin + t * dim, dim, (T *)a.k_pool + at);
            memcpy((T *)a.v_pool + at, v + h * dim, dim * sizeof(T));
        }
    }
}

// gate_up [T][2 width], gate first -> silu(gate) * up [T][width]. Shares begin at whole vectors of a row: which elements
// are left over for the scalar end, which rounds differently, must not depend on the number of threads.
template <typename T> static void silu_mul_share(const T *gate_up, long tokens, long width, T *out, int id, int nt) {
    const long vectors = (width + W - 1) / W;
    long begin, end; shares(tokens * vectors, id, nt, begin, end);
    for (long i = begin; i < end;) {
        const long t = i / vectors, v0 = i % vectors, v1 = std::min(end - i + v0, vectors);
        const T *g = gate_up + t * 2 * width, *u = g + width; T *o = out + t * width;
        const long last = std::min(v1 * W, width);
        long d = v0 * W;
        for (; d + W <= last; d += W) { vf x = load(g + d); store(o + d, x / (1.0f + vexp(-x)) * load(u + d)); }
        for (; d < last; d++) { float x = to_float(g[d]); from_float(o + d, x / (1.0f + expf(-x)) * to_float(u[d])); }
        i += v1 - v0;
    }
}
