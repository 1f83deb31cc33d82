// Attention over keys and values that lie in blocks, read where they lie.
//
// A unit of work is one key/value head of one sequence and up to 64 rows (queries x heads of the group). Keys are
// visited in tiles of 64 at absolute positions; partial results are kept per part of PART keys and merged in order.
// So the arithmetic of a query depends on its own sequence only: not on the batch, the chunking, or the threads, and
// a decode is bit for bit the same as the same token inside a chunk. Tiles that no row may see are not visited.
#pragma once
#include <algorithm>
#include <vector>
#include "gemm.h"

#define TILE 64
#define PART 1024
#define UNIT_ROWS 64

struct AttentionArgs {
    const void *q, *k, *v; void *out; // q and out: [T][heads][head_dim], q rows q_stride elements apart
    const int32_t *tables; const int64_t *query_start, *seq_lens;
    int64_t num_seqs, table_stride, heads, kv_heads, head_dim, q_stride;
    int64_t block_size, block_stride, head_stride, token_stride; // of the pools, in elements
    int64_t window; // 0 = none
    int64_t split_below; // split long rows into parts when there are fewer units than this
    float scale;
};

struct Unit { int64_t seq, head, first, count, part_begin, part_end, slot, cost; };

template <typename T> struct Scratch { // of one thread
    std::vector<char> memory;
    T *q, *keys, *values, *weights, *zeros; float *scores, *out, *total, *peak, *norm, *total_peak, *total_norm;
    const T *key_at[TILE], *value_at[TILE], *next_key[TILE], *next_value[TILE]; // of a tile and the one after it
    void prepare(long rows, long head_dim) {
        const long dim = head_dim + head_dim % 2, wide = (head_dim + BLOCK - 1) / BLOCK * BLOCK;
        const long elements = rows * dim + TILE * dim + TILE * wide + rows * TILE + wide + 256;
        const long floats = rows * TILE + 2 * rows * wide + 4 * rows + 64;
        const size_t need = elements * sizeof(T) + floats * 4 + 2048;
        if (memory.size() < need) memory.assign(need, 0);
        char *p = (char *)(((uintptr_t)memory.data() + 63) / 64 * 64);
        auto take = [&](size_t bytes) { char *r = p; p += (bytes + 63) / 64 * 64; return r; };
        q = (T *)take(rows * dim * sizeof(T)); keys = (T *)take(TILE * dim * sizeof(T));
        values = (T *)take(TILE * wide * sizeof(T)); weights = (T *)take(rows * TILE * sizeof(T));
        zeros = (T *)take(wide * sizeof(T)); memset(zeros, 0, wide * sizeof(T));
        scores = (float *)take(rows * TILE * 4); out = (float *)take(rows * wide * 4); total = (float *)take(rows * wide * 4);
        peak = (float *)take(rows * 4); norm = (float *)take(rows * 4); total_peak = (float *)take(rows * 4); total_norm = (float *)take(rows * 4);
    }
};

template <typename T> static void pack_keys(Scratch<T> &s, long head_dim) { // [dim][TILE], bf16 in pairs
    const long pair = sizeof(T) == 2 ? 2 : 1;
    long done = 0;
#if W == 16
    const long words = head_dim / pair;
    for (; done + 16 <= words; done += 16)
        for (long key = 0; key < TILE; key += 16) {
            for (int i = 0; i < 16; i++) __builtin_prefetch((const char *)s.next_key[key + i] + done * 4);
            transpose16((const void *const *)s.key_at + key, done * 4, (uint32_t *)s.keys + done * TILE + key, TILE);
        }
#endif
    for (long key = 0; key < TILE; key++)
        for (long d = done * pair; d < head_dim + (pair == 2 ? head_dim % 2 : 0); d++)
            s.keys[(d / pair) * TILE * pair + key * pair + d % pair] = d < head_dim ? s.key_at[key][d] : T(0);
}

static void pack_values(Scratch<float> &s, long head_dim, long wide) { // [TILE][wide]
    for (long key = 0; key < TILE; key++) {
        for (long d = 0; d < head_dim; d += 16) __builtin_prefetch(s.next_value[key] + d);
        memcpy(s.values + key * wide, s.value_at[key], head_dim * 4);
    }
}
static void pack_values(Scratch<bf16> &s, long head_dim, long wide) { // [TILE / 2][wide][2]
#if W == 16
    uint16_t order[64];
    for (int i = 0; i < 64; i++) order[i] = i / 2 + i % 2 * 32;
    const __m512i first = _mm512_loadu_si512(order), second = _mm512_loadu_si512(order + 32);
#endif
    for (long key = 0; key < TILE; key += 2) {
        const bf16 *a = s.value_at[key], *b = s.value_at[key + 1];
        uint32_t *o = (uint32_t *)s.values + key / 2 * wide;
        for (long d = 0; d < head_dim; d += 32) __builtin_prefetch(s.next_value[key] + d), __builtin_prefetch(s.next_value[key + 1] + d);
        long d = 0;
#if W == 16
        for (; d + 32 <= head_dim; d += 32) {
            __m512i x = _mm512_loadu_si512(a + d), y = _mm512_loadu_si512(b + d);
            _mm512_storeu_si512(o + d, _mm512_permutex2var_epi16(x, first, y));
            _mm512_storeu_si512(o + d + 16, _mm512_permutex2var_epi16(x, second, y));
        }
#endif
        for (; d < head_dim; d++) o[d] = (uint32_t)a[d] | (uint32_t)b[d] << 16;
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

template <typename T> struct Attention {
    const AttentionArgs &a;
    const long group, wide, dim;
    explicit Attention(const AttentionArgs &args)
        : a(args), group(args.heads / args.kv_heads), wide((args.head_dim + BLOCK - 1) / BLOCK * BLOCK),
          dim(args.head_dim + (sizeof(T) == 2 ? args.head_dim % 2 : 0)) {}

    long row_capacity() const { return group > UNIT_ROWS ? group : UNIT_ROWS; }

    void plan(std::vector<Unit> &units, long &slots) const {
        const long queries = group > UNIT_ROWS ? 1 : UNIT_ROWS / group;
        for (long s = 0; s < a.num_seqs; s++) {
            const long count = a.query_start[s + 1] - a.query_start[s], start = a.seq_lens[s] - count;
            for (long first = 0; first < count; first += queries) {
                const long n = std::min(queries, count - first);
                const long low = a.window ? std::max(start + first - a.window + 1, 0L) : 0, high = start + first + n;
                for (long h = 0; h < a.kv_heads; h++)
                    units.push_back({s, h, first, n, low / PART, (high - 1) / PART + 1, -1, (high - low) * (n * group + 16)});
            }
        }
        slots = 0;
        if ((long)units.size() >= a.split_below) return;
        std::vector<Unit> parts;
        for (const Unit &u : units) {
            if (u.part_end - u.part_begin < 2) { parts.push_back(u); continue; }
            for (long p = u.part_begin; p < u.part_end; p++)
                parts.push_back({u.seq, u.head, u.first, u.count, p, p + 1, slots++, PART * (u.count * group + 16)});
        }
        units.swap(parts);
    }

    void tile_pointers(Scratch<T> &s, const Unit &u, long key0, long end, const T **key_at, const T **value_at) const {
        const int32_t *table = a.tables + u.seq * a.table_stride;
        const T *k = (const T *)a.k + u.head * a.head_stride, *v = (const T *)a.v + u.head * a.head_stride;
        const long seen = std::max(std::min((long)TILE, end - key0), 0L);
        long block = key0 / a.block_size, offset = key0 % a.block_size, i = 0;
        while (i < seen) { // block by block
            const long base = table[block++] * a.block_stride, last = std::min(seen, i + a.block_size - offset);
            for (long at = base + offset * a.token_stride; i < last; i++, at += a.token_stride) key_at[i] = k + at, value_at[i] = v + at;
            offset = 0;
        }
        for (; i < TILE; i++) key_at[i] = value_at[i] = s.zeros;
    }

    void soften(Scratch<T> &s, long r, long key0, long low, long high) const { // one row of scores -> weights
        float *x = s.scores + r * TILE;
        const bool whole = low <= key0 && key0 + TILE <= high;
        vf top = splat(-INFINITY);
        vi bad = {};
        for (long i = 0; i < TILE; i += W) {
            vf y = load(x + i) * a.scale;
            if (!whole) {
                vi at = iota() + (int32_t)(i);
                vi seen = (at >= (int32_t)std::max(low - key0, 0L)) & (at < (int32_t)std::min(std::max(high - key0, 0L), (long)TILE));
                y = seen ? y : splat(-INFINITY);
            }
            bad |= y != y;
            store(x + i, y); top = vmax(y, top);
        }
        float peak = max_of(top);
        if (any_of(bad)) peak = NAN; // NaN must stay visible
        T *w = s.weights + r * TILE;
        if (!(peak > -INFINITY) && peak == peak) { memset(w, 0, TILE * sizeof(T)); return; }
        const float old = s.peak[r], now = peak > old || peak != peak ? peak : old, keep = now == old ? 1.0f : old > -INFINITY ? expf(old - now) : 0.0f;
        vf sum = {};
        for (long i = 0; i < TILE; i += W) {
            const vf y = vexp_low(load(x + i) - now);
            store(w + i, y);
            sum += rounded_as(w, y); // the weights add up to one
        }
        s.norm[r] = s.norm[r] * keep + sum_of(sum);
        s.peak[r] = now;
        if (keep != 1.0f) for (long d = 0; d < wide; d += W) store(s.out + r * wide + d, load(s.out + r * wide + d) * keep);
    }

    void part(Scratch<T> &s, const Unit &u, long p, long start, long rows) const {
        const long low0 = a.window ? std::max(start + u.first - a.window + 1, 0L) : 0;
        const long begin = std::max(low0 / TILE * TILE, p * PART), end = std::min(start + u.first + u.count, (p + 1) * PART);
        for (long r = 0; r < rows; r++) s.peak[r] = -INFINITY, s.norm[r] = 0;
        memset(s.out, 0, rows * wide * 4);
        tile_pointers(s, u, begin, end, s.next_key, s.next_value);
        for (long key0 = begin; key0 < end; key0 += TILE) {
            memcpy(s.key_at, s.next_key, sizeof s.key_at); memcpy(s.value_at, s.next_value, sizeof s.value_at);
            tile_pointers(s, u, key0 + TILE, end, s.next_key, s.next_value);
            // Rows are ordered by query: those of the first queries may see nothing of the last tiles.
            const long hidden = std::max(key0 - (start + u.first), 0L), skip = hidden * group;
            pack_keys(s, a.head_dim);
            product<false>(rows - skip, s.q + skip * dim, dim, s.keys, TILE, dim, TILE, s.scores + skip * TILE, TILE, false);
            for (long r = skip; r < rows; r++) {
                const long at = start + u.first + r / group;
                soften(s, r, key0, a.window ? std::max(at - a.window + 1, 0L) : 0, at + 1);
            }
            pack_values(s, a.head_dim, wide);
            product<false>(rows - skip, s.weights + skip * TILE, TILE, s.values, wide, TILE, wide, s.out + skip * wide, wide, true);
        }
    }

    void run(Scratch<T> &s, const Unit &u, float *slots) const {
        const long count = a.query_start[u.seq + 1] - a.query_start[u.seq], start = a.seq_lens[u.seq] - count, rows = u.count * group;
        const T *q = (const T *)a.q + (a.query_start[u.seq] + u.first) * a.q_stride + u.head * group * a.head_dim;
        for (long r = 0; r < rows; r++) {
            memcpy(s.q + r * dim, q + r / group * a.q_stride + r % group * a.head_dim, a.head_dim * sizeof(T));
            if (dim != a.head_dim) s.q[r * dim + a.head_dim] = 0;
        }
        if (u.slot >= 0) {
            part(s, u, u.part_begin, start, rows);
            float *o = slots + u.slot * row_capacity() * (wide + 2);
            memcpy(o, s.out, rows * wide * 4);
            for (long r = 0; r < rows; r++) o[rows * wide + 2 * r] = s.peak[r], o[rows * wide + 2 * r + 1] = s.norm[r];
            return;
        }
        clear(s, rows);
        for (long p = u.part_begin; p < u.part_end; p++) {
            part(s, u, p, start, rows);
            for (long r = 0; r < rows; r++) merge(s.total + r * wide, s.total_peak[r], s.total_norm[r], s.out + r * wide, s.peak[r], s.norm[r], wide);
        }
        finish(s, u, rows);
    }

    void clear(Scratch<T> &s, long rows) const {
        memset(s.total, 0, rows * wide * 4);
        for (long r = 0; r < rows; r++) s.total_peak[r] = -INFINITY, s.total_norm[r] = 0;
    }
    void gather(Scratch<T> &s, const Unit &first, long parts, const float *slots) const { // the parts of one split unit
        const long rows = first.count * group;
        clear(s, rows);
        for (long p = 0; p < parts; p++) {
            const float *o = slots + (first.slot + p) * row_capacity() * (wide + 2);
            for (long r = 0; r < rows; r++) merge(s.total + r * wide, s.total_peak[r], s.total_norm[r], o + r * wide, o[rows * wide + 2 * r], o[rows * wide + 2 * r + 1], wide);
        }
        finish(s, first, rows);
    }
    void finish(Scratch<T> &s, const Unit &u, long rows) const {
        T *out = (T *)a.out + ((a.query_start[u.seq] + u.first) * a.heads + u.head * group) * a.head_dim;
        for (long r = 0; r < rows; r++) {
            const float by = 1.0f / s.total_norm[r];
            T *o = out + r / group * a.heads * a.head_dim + r % group * a.head_dim;
            long d = 0;
            for (; d + W <= a.head_dim; d += W) store(o + d, load(s.total + r * wide + d) * by);
            for (; d < a.head_dim; d++) from_float(o + d, s.total[r * wide + d] * by);
        }
    }
};
