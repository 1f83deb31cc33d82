// Attention over keys and values that lie in blocks, read where they lie.
//
// Keys are visited in tiles of TILE at absolute positions; the result of every PART keys is kept apart and the parts are
// merged in order. So the arithmetic of a query depends on its own sequence only: not on the batch, the chunking, shared
// prefixes or the threads, and a decode is bit for bit the same as the same token inside a chunk. Tiles that no row may
// see are not visited.
#pragma once
#include "attention_plan.h"

template <typename T> struct Attention {
    const AttentionArgs &a;
    const AttentionPlan &plan;
    float *const slots;
    const long group, wide, dim;
    const TileArgs tiles;
    Attention(const AttentionArgs &args, AttentionPlan &from)
        : a(args), plan(from), slots(from.slots.data()), group(args.heads / args.kv_heads),
          wide((args.head_dim + BLOCK - 1) / BLOCK * BLOCK), dim(args.head_dim + (sizeof(T) == 2 ? args.head_dim % 2 : 0)),
          tiles{args.head_dim, dim, wide, args.window, args.head_stride, args.token_stride, args.scale, args.is_paired != 0} {}

    long row_capacity() const { return group > UNIT_ROWS ? group : UNIT_ROWS; }
    const Owner &owner(const Job &j, long i = 0) const { return plan.owners[plan.members[j.owners + i]]; }
    long start_of(const Owner &o) const { return a.seq_lens[o.seq] - (a.query_start[o.seq + 1] - a.query_start[o.seq]); }
    float *slot_of(const Owner &o, long part, long head) const {
        return slots + o.slot + ((part - o.part_begin) * a.kv_heads + head) * o.count * group * (wide + 2);
    }
    bool are_few(long rows) const { return rows <= FEW_ROWS && a.head_dim % 32 == 0 && a.block_size % RUN == 0; }

    void find_tile(Scratch<T> &s, const Owner &o, long head, long key0, long end, Tile<T> &tile) const {
        const int32_t *table = a.tables + o.seq * a.table_stride;
        const T *k = (const T *)a.k + head * a.head_stride, *v = (const T *)a.v + head * a.head_stride;
        const long seen = std::max(std::min((long)TILE, end - key0), 0L);
        long block = seen ? key0 / a.block_size : 0, offset = seen ? key0 % a.block_size : 0, i = 0;
        while (i < seen) { // block by block
            const long base = table[block++] * a.block_stride, last = std::min(seen, i + a.block_size - offset);
            for (long at = base + offset * a.token_stride; i < last; i++, at += a.token_stride) tile.key[i] = k + at, tile.value[i] = v + at;
            offset = 0;
        }
        tile.seen = seen;
        for (; i < TILE; i++) tile.key[i] = tile.value[i] = s.zeros;
    }

    long first_key(const Owner &o, long part) const { // of those its first row may see
        const long low = a.window ? std::max(start_of(o) + o.first - a.window + 1, 0L) : 0;
        return std::max(low / TILE * TILE, part * PART);
    }

    // All rows of the job's heads attend keys [begin, end), which lie in one part. after: what this thread does next.
    void attend(Scratch<T> &s, const Job &j, long begin, long end, long rows, const Job *after) const {
        const Owner &o = owner(j);
        long first = 0; // rows of an owner are ordered by query: the first may see nothing of the last tiles
        find_tile(s, o, j.head, begin, end, s.next);
        for (long key0 = begin; key0 < end; key0 += TILE) {
            s.now = s.next;
            if (key0 + TILE < end || !after) find_tile(s, o, j.head, key0 + TILE, end, s.next);
            else find_tile(s, owner(*after), after->head, next_key(*after), after->end, s.next);
            while (first < rows && s.at[first] < key0) first++;
#if HAS_DOT_BF16
            if constexpr (sizeof(T) == 2)
                if (are_few(rows - first)) {
                    with_rows(rows - first, [&](auto count) {
                        constexpr int R = decltype(count)::value;
                        if (tiles.is_paired) attend_tile_together<R, true>(s, tiles, j.num_heads, first, rows, key0);
                        else attend_tile_together<R, false>(s, tiles, j.num_heads, first, rows, key0);
                    });
                    continue;
                }
#endif
            attend_tile(s, tiles, first, rows, key0);
        }
    }
    long next_key(const Job &j) const { return j.ends && j.begin < j.end ? std::max((long)j.begin, first_key(owner(j), owner(j).part_begin)) : j.begin; }

    void load_queries(Scratch<T> &s, const Owner &o, long head, long row) const {
        const T *q = (const T *)a.q + (a.query_start[o.seq] + o.first) * a.q_stride + head * group * a.head_dim;
        for (long r = 0; r < o.count * group; r++) {
            T *to = s.q + (row + r) * dim;
            memcpy(to, q + r / group * a.q_stride + r % group * a.head_dim, a.head_dim * sizeof(T));
            if (dim != a.head_dim) to[a.head_dim] = 0;
            s.at[row + r] = start_of(o) + o.first + r / group;
        }
    }
    void load_state(Scratch<T> &s, const Owner &o, long row, const float *from) const {
        const long rows = o.count * group;
        memcpy(s.out + row * wide, from, rows * wide * 4);
        for (long r = 0; r < rows; r++) s.peak[row + r] = from[rows * wide + 2 * r], s.norm[row + r] = from[rows * wide + 2 * r + 1];
    }
    void save_state(const Scratch<T> &s, const Owner &o, long row, float *to) const {
        const long rows = o.count * group;
        memcpy(to, s.out + row * wide, rows * wide * 4);
        for (long r = 0; r < rows; r++) to[rows * wide + 2 * r] = s.peak[row + r], to[rows * wide + 2 * r + 1] = s.norm[row + r];
    }
    void clear_state(Scratch<T> &s, long row, long rows) const {
        memset(s.out + row * wide, 0, rows * wide * 4);
        for (long r = row; r < row + rows; r++) s.peak[r] = -INFINITY, s.norm[r] = 0;
    }

    void run(Scratch<T> &s, const Job &j, const Job *after) const { return j.ends ? finish(s, j, after) : gather(s, j, after); }

    void gather(Scratch<T> &s, const Job &j, const Job *after) const { // some keys of one part, for one owner or several
        const long part = j.begin / PART;
        long row = 0;
        each(j, [&](const Owner &o, long head) {
            load_queries(s, o, head, row);
            if (j.begin > part * PART) load_state(s, o, row, slot_of(o, part, head)); // another job began it
            else clear_state(s, row, o.count * group);
            row += o.count * group;
        });
        attend(s, j, std::max((long)j.begin, first_key(owner(j), part)), j.end, row / j.num_heads, after);
        row = 0;
        each(j, [&](const Owner &o, long head) {
            save_state(s, o, row, slot_of(o, part, head));
            row += o.count * group;
        });
    }
    template <typename F> void each(const Job &j, F f) const {
        for (long i = 0; i < j.num_owners; i++) for (long h = 0; h < j.num_heads; h++) f(owner(j, i), j.head + h);
    }

    void finish(Scratch<T> &s, const Job &j, const Job *after) const { // what is left of an owner's keys, then its output
        const Owner &o = owner(j);
        const long rows = o.count * group, all = j.num_heads * rows;
        for (long h = 0; h < j.num_heads; h++) load_queries(s, o, j.head + h, h * rows);
        memset(s.total, 0, all * wide * 4);
        for (long r = 0; r < all; r++) s.total_peak[r] = -INFINITY, s.total_norm[r] = 0;
        for (long p = o.part_begin; p < o.part_end; p++) {
            if (o.slot < 0 || p * PART >= j.begin) clear_state(s, 0, all);
            else for (long h = 0; h < j.num_heads; h++) load_state(s, o, h * rows, slot_of(o, p, j.head + h));
            const long begin = std::max((long)j.begin, first_key(o, p)), end = std::min((long)j.end, (p + 1) * PART);
            if (begin < end) attend(s, j, begin, end, rows, end == j.end ? after : nullptr);
            for (long r = 0; r < all; r++) merge(s.total + r * wide, s.total_peak[r], s.total_norm[r], s.out + r * wide, s.peak[r], s.norm[r], wide);
        }
        for (long h = 0; h < j.num_heads; h++) write_out(s, o, j.head + h, h * rows);
    }
    void write_out(Scratch<T> &s, const Owner &o, long head, long row) const {
        T *out = (T *)a.out + ((a.query_start[o.seq] + o.first) * a.heads + head * group) * a.head_dim;
        for (long r = 0; r < o.count * group; r++) {
            float *from = s.total + (row + r) * wide;
            const float by = 1.0f / s.total_norm[row + r];
            if (!a.is_paired) ordered<T>(from, a.head_dim);
            T *to = out + r / group * a.heads * a.head_dim + r % group * a.head_dim;
            long d = 0;
            for (; d + W <= a.head_dim; d += W) store(to + d, load(from + d) * by);
            for (; d < a.head_dim; d++) from_float(to + d, from[d] * by);
        }
    }
};

// step: names the rows of a step; layers with the same rows and window share a plan. 0 = never.
static void plan_attention(const AttentionArgs &a, AttentionPlan &plan, int64_t step, bool has_dot) {
    if (!(step && plan.step == step && plan.window == a.window)) {
        plan.step = 0; // of a plan that found no memory nothing is used again
        Planner(a, plan, has_dot).run();
        plan.step = step; plan.window = a.window;
    }
    for (Phase &phase : plan.phases) phase.taken = 0;
}
