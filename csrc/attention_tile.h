// The arithmetic of attention on one tile of TILE keys at an absolute position: scores, weights, weighted values.
//
// Every score and every output element is summed by one accumulator, over head_dim in pairs or over the keys in pairs, in
// order. How many rows are in flight, whether keys were transposed into memory or in registers: no bit depends on it.
#pragma once
#include <algorithm>
#include <vector>
#include "gemm.h"

#define TILE 64
#define RUN 16 // keys of a head that are read together; in pairs order they lie interleaved, see parts.h
#define FEW_ROWS 8 // of a head; up to here keys and values are not packed into memory first
#define ROWS_TOGETHER 32 // of several heads with few rows, which pass a tile together
#define RUNS_AHEAD 2 // are fetched before they are needed
static_assert(MAX_ROWS <= FEW_ROWS, "scratch holds the scores of so many rows");

template <typename T> struct Tile { // where a tile's keys and values lie, of the first head; in pairs order where runs begin
    const T *key[TILE], *value[TILE];
    long seen; // keys there are; the rest are zeros
};

template <typename T> struct Scratch { // of one thread
    std::vector<char> memory;
    T *q, *keys, *values, *weights, *zeros; float *scores, *out, *total, *peak, *norm, *total_peak, *total_norm;
    long *at; // position of every row's query
    Tile<T> now, next; // the tile in work, and the one after it, which is fetched meanwhile
    void prepare(long rows, long head_dim) {
        const long dim = head_dim + head_dim % 2, wide = (head_dim + BLOCK - 1) / BLOCK * BLOCK;
        const long elements = rows * dim + TILE * dim + TILE * wide + ROWS_TOGETHER * TILE + wide + 512;
        const long floats = ROWS_TOGETHER * TILE + 2 * rows * wide + 6 * rows + 64;
        const size_t need = elements * sizeof(T) + floats * 4 + 2048;
        if (memory.size() < need) memory.assign(need, 0);
        char *p = (char *)(((uintptr_t)memory.data() + 63) / 64 * 64);
        auto take = [&](size_t bytes) { char *r = p; p += (bytes + 63) / 64 * 64; return r; };
        q = (T *)take(rows * dim * sizeof(T)); keys = (T *)take(TILE * dim * sizeof(T));
        values = (T *)take(TILE * wide * sizeof(T)); weights = (T *)take(ROWS_TOGETHER * TILE * sizeof(T));
        zeros = (T *)take(wide * sizeof(T)); memset(zeros, 0, wide * sizeof(T));
        scores = (float *)take(ROWS_TOGETHER * TILE * 4); out = (float *)take(rows * wide * 4); total = (float *)take(rows * wide * 4);
        peak = (float *)take(rows * 4); norm = (float *)take(rows * 4); total_peak = (float *)take(rows * 4); total_norm = (float *)take(rows * 4);
        at = (long *)take(rows * 8);
    }
};

template <typename T> static void pack_keys(Scratch<T> &s, long head_dim) { // [dim][TILE], bf16 in pairs
    const long pair = sizeof(T) == 2 ? 2 : 1;
    long done = 0;
#if W == 16
    const long words = head_dim / pair;
    for (; done + 16 <= words; done += 16)
        for (long key = 0; key < TILE; key += 16) {
            for (int i = 0; i < 16; i++) __builtin_prefetch((const char *)s.next.key[key + i] + done * 4);
            transpose16((const void *const *)s.now.key + key, done * 4, (uint32_t *)s.keys + done * TILE + key, TILE);
        }
#endif
    for (long key = 0; key < TILE; key++)
        for (long d = done * pair; d < head_dim + (pair == 2 ? head_dim % 2 : 0); d++)
            s.keys[(d / pair) * TILE * pair + key * pair + d % pair] = d < head_dim ? s.now.key[key][d] : T(0);
}

static void pack_values(Scratch<float> &s, long head_dim, long wide) { // [TILE][wide]
    for (long key = 0; key < TILE; key++) {
        for (long d = 0; d < head_dim; d += 16) __builtin_prefetch(s.next.value[key] + d);
        memcpy(s.values + key * wide, s.now.value[key], head_dim * 4);
    }
}
// Values of two keys are brought together within quarters of a vector, which is cheap: 32 columns lie in the order 0-3,
// 8-11, 16-19, 24-27, 4-7, ... until ordered() puts them back.
#if W == 16
#define LOW_PAIRS _mm512_unpacklo_epi16
#define HIGH_PAIRS _mm512_unpackhi_epi16
#endif
template <typename T> static void ordered(float *, long) {}
#if W == 16
template <> void ordered<bf16>(float *out, long head_dim) {
    for (long d = 0; d + 32 <= head_dim; d += 32) {
        const __m512i x = _mm512_loadu_si512(out + d), y = _mm512_loadu_si512(out + d + 16);
        const __m512i low = _mm512_shuffle_i64x2(x, y, 0x44), high = _mm512_shuffle_i64x2(x, y, 0xee); // x0 x1 y0 y1, x2 x3 y2 y3
        _mm512_storeu_si512(out + d, _mm512_shuffle_i64x2(low, low, 0xd8)); // x0 y0 x1 y1
        _mm512_storeu_si512(out + d + 16, _mm512_shuffle_i64x2(high, high, 0xd8));
    }
}
#endif
static void pack_values(Scratch<bf16> &s, long head_dim, long wide) { // [TILE / 2][wide][2]
    for (long key = 0; key < TILE; key += 2) {
        const bf16 *a = s.now.value[key], *b = s.now.value[key + 1];
        uint32_t *o = (uint32_t *)s.values + key / 2 * wide;
        for (long d = 0; d < head_dim; d += 32) __builtin_prefetch(s.next.value[key] + d), __builtin_prefetch(s.next.value[key + 1] + d);
        long d = 0;
#if W == 16
        for (; d + 32 <= head_dim; d += 32) {
            __m512i x = _mm512_loadu_si512(a + d), y = _mm512_loadu_si512(b + d);
            _mm512_storeu_si512(o + d, LOW_PAIRS(x, y));
            _mm512_storeu_si512(o + d + 16, HIGH_PAIRS(x, y));
        }
#endif
        for (; d < head_dim; d++) o[d] = (uint32_t)a[d] | (uint32_t)b[d] << 16;
    }
}

// Tiles in pairs order: as the products want them, but run by run.
template <typename T> static void pack_keys_of_pairs(Scratch<T> &s, long head_dim) {
    const long words = head_dim / 2;
    for (long key = 0; key < TILE; key += RUN)
        for (long i = 0; i < words; i++) {
            uint32_t *to = (uint32_t *)s.keys + i * TILE + key;
            if (key >= s.now.seen) { memset(to, 0, RUN * 4); continue; }
            memcpy(to, (const uint32_t *)s.now.key[key] + i * RUN, RUN * 4);
            __builtin_prefetch((const uint32_t *)s.next.key[key < s.next.seen ? key : 0] + i * RUN);
        }
}
template <typename T> static void pack_values_of_pairs(Scratch<T> &s, long head_dim, long wide) {
    for (long key = 0; key < TILE; key += 2) {
        uint32_t *to = (uint32_t *)s.values + key / 2 * wide;
        if (key >= s.now.seen) { memset(to, 0, head_dim * 4); continue; }
        const long run = key / RUN * RUN, ahead = run < s.next.seen ? run : 0;
        memcpy(to, (const uint32_t *)s.now.value[run] + (key - run) / 2 * head_dim, head_dim * 4);
        if (key + 1 == s.now.seen) for (long d = 0; d < head_dim; d++) to[d] &= 0xffff; // whatever lies where no token is yet
        for (long d = 0; d < head_dim; d += 16) __builtin_prefetch((const uint32_t *)s.next.value[ahead] + (key - run) / 2 * head_dim + d);
    }
}

#if HAS_DOT_BF16
// The following read a run of one head; stride: elements between its keys, or 0 in pairs order. ahead: a run to fetch.
template <bool PAIRS> INLINE void fetch_lines(const bf16 *ahead, long stride, long begin, long end, long lines) {
    if (PAIRS) for (long i = begin * lines; i < end * lines; i++) __builtin_prefetch(ahead + i * 32);
    else for (long i = begin; i < end; i++) for (long part = 0; part < lines; part++) __builtin_prefetch(ahead + i * stride + part * 32);
}

// Scores of R rows, TILE apart; otherwise keys are transposed in registers, 32 numbers at a time.
template <int R, bool PAIRS> static void few_scores(const bf16 *keys, long stride, const bf16 *q, long dim, float *scores, const bf16 *ahead) {
    const long lines = dim / 32;
    const void *key[RUN];
    for (int i = 0; i < RUN; i++) key[i] = keys + i * stride;
    __m512 acc[R];
    for (int r = 0; r < R; r++) acc[r] = _mm512_setzero_ps();
    for (long line = 0; line < lines; line++) {
        fetch_lines<PAIRS>(ahead, stride, line * RUN / lines, (line + 1) * RUN / lines, lines);
        const bf16 *x = q + line * 32;
        __m512i w[RUN];
        if (!PAIRS) transpose16(key, line * 64, w);
        for (int i = 0; i < 16; i++) {
            if (PAIRS) w[i] = _mm512_loadu_si512(keys + (line * 16 + i) * 2 * RUN);
            for (int r = 0; r < R; r++) {
                int32_t pair; memcpy(&pair, x + r * dim + 2 * i, 4);
                acc[r] = _mm512_dpbf16_ps(acc[r], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w[i]);
            }
        }
    }
    for (int r = 0; r < R; r++) _mm512_store_ps(scores + r * TILE, acc[r]);
}

// out [R][wide] += weights of R rows, TILE apart, times the first seen values of a run, NV vectors of columns at a time.
template <int R, int NV, bool PAIRS>
static void few_values(const bf16 *values, long stride, long seen, const bf16 *weights, float *out, long dim, long wide, const bf16 *ahead) {
    const long lines = dim / 32, parts = dim / (NV * 16);
    for (long part = 0; part < parts; part++) {
        const long d0 = part * NV * 16;
        __m512 acc[R][NV];
        for (int r = 0; r < R; r++) for (int j = 0; j < NV; j++) acc[r][j] = _mm512_load_ps(out + r * wide + d0 + j * 16);
        for (long key = 0; key < RUN; key += 2) {
            const long at = part * RUN + key; // of parts * RUN
            fetch_lines<PAIRS>(ahead, stride, at / parts, (at + 2) / parts, lines);
            if (key >= seen) continue; // weights are zeros, and whatever lies there is nobody's
            const bool is_alone = key + 1 == seen;
            __m512i w[NV];
            if (PAIRS) {
                const __m512i mask = _mm512_set1_epi32(is_alone ? 0xffff : -1);
                for (int j = 0; j < NV; j++) w[j] = _mm512_and_si512(_mm512_loadu_si512(values + key * dim + 2 * (d0 + j * 16)), mask);
            } else {
                const bf16 *a = values + key * stride + d0, *b = a + stride;
                for (int j = 0; j < NV; j += 2) {
                    const __m512i x = _mm512_loadu_si512(a + j * 16), y = is_alone ? _mm512_setzero_si512() : _mm512_loadu_si512(b + j * 16);
                    w[j] = LOW_PAIRS(x, y); w[j + 1] = HIGH_PAIRS(x, y);
                }
            }
            for (int r = 0; r < R; r++) {
                int32_t pair; memcpy(&pair, weights + r * TILE + key, 4);
                const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
                for (int j = 0; j < NV; j++) acc[r][j] = _mm512_dpbf16_ps(acc[r][j], x, (__m512bh)w[j]);
            }
        }
        for (int r = 0; r < R; r++) for (int j = 0; j < NV; j++) _mm512_store_ps(out + r * wide + d0 + j * 16, acc[r][j]);
    }
}
template <int R, bool PAIRS>
static void few_values(const bf16 *values, long stride, long seen, const bf16 *weights, float *out, long dim, long wide, const bf16 *ahead) {
    if (R <= 2 && dim % 128 == 0) few_values<R, R <= 2 ? 8 : 2, PAIRS>(values, stride, seen, weights, out, dim, wide, ahead);
    else if (R <= 4 && dim % 64 == 0) few_values<R, R <= 4 ? 4 : 2, PAIRS>(values, stride, seen, weights, out, dim, wide, ahead);
    else few_values<R, 2, PAIRS>(values, stride, seen, weights, out, dim, wide, ahead);
}
template <typename F> static void with_rows(long rows, F f) {
    switch (rows) {
        case 1: f(std::integral_constant<int, 1>()); break; case 2: f(std::integral_constant<int, 2>()); break;
        case 3: f(std::integral_constant<int, 3>()); break; case 4: f(std::integral_constant<int, 4>()); break;
        case 5: f(std::integral_constant<int, 5>()); break; case 6: f(std::integral_constant<int, 6>()); break;
        case 7: f(std::integral_constant<int, 7>()); break; default: f(std::integral_constant<int, 8>());
    }
}
#endif

INLINE bool has_nan(const float *x) { // of a tile
#if W == 16
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16), c = _mm512_loadu_ps(x + 32), d = _mm512_loadu_ps(x + 48);
    return (_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(c, d, _CMP_UNORD_Q)) != 0;
#else
    vi bad = {};
    for (long i = 0; i < TILE; i += W) bad |= load(x + i) != load(x + i);
    return any_of(bad);
#endif
}

// w = exp(x * scale - peak) of a tile; what the weights add up to after rounding, lane by lane.
template <typename T> INLINE vf weigh(const float *x, T *w, float scale, float peak) {
    vf sum = {};
#if HAS_DOT_BF16
    if constexpr (sizeof(T) == 2) {
        const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
        for (long i = 0; i < TILE; i += 32) {
            const vf low = vexp_low(w, load(x + i) * scale - peak), high = vexp_low(w, load(x + i + 16) * scale - peak);
            const __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
            _mm512_storeu_si512(w + i, (__m512i)both);
            sum = (vf)_mm512_dpbf16_ps((__m512)sum, both, ones);
        }
        return sum;
    }
#endif
    for (long i = 0; i < TILE; i += W) {
        const vf y = vexp_low(w, load(x + i) * scale - peak);
        store(w + i, y);
        sum += rounded_as(w, y);
    }
    return sum;
}

// Raw scores [n][TILE] of n <= FEW_ROWS rows from row on -> weights of the keys a row sees, and its running peak, norm and
// output. In stages over the rows, so that the rows' chains of dependent steps overlap.
template <typename T>
__attribute__((noinline)) static void soften(Scratch<T> &s, float *scores, T *weights, long row, long n, long key0, long window, float scale, long wide) {
    const long vectors = TILE / W, slots = (FEW_ROWS + W - 1) / W * W;
    float peak[slots] __attribute__((aligned(64))), keep[slots] __attribute__((aligned(64)));
    for (long r = 0; r < slots; r++) peak[r] = -INFINITY;
    for (long r = 0; r < n; r++) {
        float *x = scores + r * TILE;
        const long high = s.at[row + r] + 1, low = window ? std::max(high - window, 0L) : 0;
        if (low > key0 || key0 + TILE > high)
            for (long i = 0; i < TILE; i += W) {
                vi at = iota() + (int32_t)(i);
                vi seen = (at >= (int32_t)std::max(low - key0, 0L)) & (at < (int32_t)std::min(std::max(high - key0, 0L), (long)TILE));
                store(x + i, seen ? load(x + i) : splat(-INFINITY));
            }
        vf top = load(x);
        for (long i = 1; i < vectors; i++) top = vmax(load(x + i * W), top);
        peak[r] = has_nan(x) ? NAN : max_of(top) * scale; // NaN must stay visible
    }
    for (long r = 0; r < n; r += W) {
        float before[W] = {};
        memcpy(before, s.peak + row + r, std::min(n - r, (long)W) * 4);
        const vf old = load(before), new_ = load(peak + r);
        const vi is_higher = (new_ > old) | (new_ != new_);
        const vf now = is_higher ? new_ : old;
        const vi is_first = old == splat(-INFINITY);
        vf by = is_higher ? (is_first ? (vf){} : vexp_low(old - now)) : splat(1.0f);
        store(peak + r, now); store(keep + r, by);
        memcpy(s.peak + row + r, peak + r, std::min(n - r, (long)W) * 4);
    }
    for (long r = 0; r < n; r++) {
        const float *x = scores + r * TILE;
        T *w = weights + r * TILE;
        if (peak[r] == -INFINITY) { memset(w, 0, TILE * sizeof(T)); continue; } // has seen nothing yet
        const vf sum = weigh(x, w, scale, peak[r]);
        s.norm[row + r] = s.norm[row + r] * keep[r] + sum_of(sum);
    }
    for (long r = 0; r < n; r++) {
        if (keep[r] == 1.0f) continue;
        float *o = s.out + (row + r) * wide;
        for (long d = 0; d < wide; d += W) store(o + d, load(o + d) * keep[r]);
    }
}

// merge (peak, norm, out) of a part into the total of the parts before it
static void merge(float *total, float &total_peak, float &total_norm, const float *out, float peak, float norm, long wide) {
    if (!(peak > -INFINITY) && peak == peak) return; // the part shows the row nothing
    const float top = peak > total_peak || peak != peak ? peak : total_peak;
    const float a = total_peak > -INFINITY ? expf(total_peak - top) : 0.0f, b = expf(peak - top);
    for (long d = 0; d < wide; d += W) store(total + d, load(total + d) * a + load(out + d) * b);
    total_norm = total_norm * a + norm * b;
    total_peak = top;
}

struct TileArgs { // how tiles lie and what rows see of them
    long head_dim, dim, wide, window, head_stride, token_stride;
    float scale;
    bool is_paired;
};

// Rows [begin, rows) of one head attend the tile s.now, of keys key0 and on; s.next is fetched. window 0 = none.
template <typename T> static void attend_tile(Scratch<T> &s, const TileArgs &a, long begin, long rows, long key0) {
    if (a.is_paired) pack_keys_of_pairs(s, a.head_dim), pack_values_of_pairs(s, a.head_dim, a.wide);
    else pack_keys(s, a.head_dim), pack_values(s, a.head_dim, a.wide);
    for (long m = begin; m < rows; m += MAX_ROWS) { // a few rows through all of it: their scores stay near
        const long n = std::min(rows - m, (long)MAX_ROWS);
        product<false>(n, s.q + m * a.dim, a.dim, s.keys, TILE, a.dim, TILE, s.scores, TILE, false);
        soften(s, s.scores, s.weights, m, n, key0, a.window, a.scale, a.wide);
        product<false>(n, s.weights, TILE, s.values, a.wide, TILE, a.wide, s.out + m * a.wide, a.wide, true);
    }
}

#if HAS_DOT_BF16
// The same for rows [begin, begin + R) of each of several heads, which have `rows` each. The heads of a run follow each
// other in memory, and are read in that order: streams as long as they can be.
template <int R, bool PAIRS> static void attend_tile_together(Scratch<bf16> &s, const TileArgs &a, long heads, long begin, long rows, long key0) {
    const long stride = PAIRS ? 0 : a.token_stride;
    const bf16 *runs[2 * TILE / RUN * ROWS_TOGETHER + RUNS_AHEAD]; // in the order of reading: keys of all heads, run by run, then values
    long count = 0;
    auto list = [&](const bf16 *const *from, long seen) {
        for (long key = 0; key < seen; key += RUN)
            for (long h = 0; h < heads; h++) runs[count++] = from[key] + h * a.head_stride;
    };
    list(s.now.key, s.now.seen);
    list(s.now.value, s.now.seen);
    for (long i = 0; i < RUNS_AHEAD; i++) runs[count + i] = s.next.seen > 0 ? s.next.key[0] + std::min(i, heads - 1) * a.head_stride : runs[count - 1];
    const bf16 *const *run = runs;
    for (long key = 0; key < TILE; key += RUN)
        for (long h = 0; h < heads; h++) {
            float *scores = s.scores + h * R * TILE + key;
            if (key >= s.now.seen) { for (int r = 0; r < R; r++) memset(scores + r * TILE, 0, RUN * 4); continue; }
            few_scores<R, PAIRS>(run[0], stride, s.q + (h * rows + begin) * a.dim, a.dim, scores, run[RUNS_AHEAD]);
            run++;
        }
    for (long h = 0; h < heads; h++)
        soften(s, s.scores + h * R * TILE, s.weights + h * R * TILE, h * rows + begin, R, key0, a.window, a.scale, a.wide);
    for (long key = 0; key < s.now.seen; key += RUN)
        for (long h = 0; h < heads; h++, run++)
            few_values<R, PAIRS>(run[0], stride, s.now.seen - key, s.weights + h * R * TILE + key, s.out + (h * rows + begin) * a.wide, a.head_dim, a.wide, run[RUNS_AHEAD]);
}
#endif
