// Which thread attends what: owners (queries of a sequence that are worked on together), jobs (keys of an owner and some
// of its heads, or keys that several owners share and one head), and phases (jobs that may run at the same time).
//
// Sequences whose block tables begin with the same names form a group: the keys of those blocks are read once for the
// rows of all of them, before the rest of each. Groups form a tree of at most MAX_DEPTH levels, one phase each. What a
// part of PART keys gave so far is kept in the owner's slots and continued from there, so an owner meets the same tiles
// in the same order with or without a group.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>
#include "attention_tile.h"

#ifndef PART // benchmarks/cpu_kernels.py measures what parts cost
#define PART 1024
#endif
#define UNIT_ROWS 128 // rows of a job, queries x heads of a group
#define MIN_GROUP_ROWS 16 // of a job that rows of a group share, however many threads there are
#define MAX_DEPTH 4
#define MIN_SAVED_TILES 4 // reads of a tile that a deeper group must save

struct AttentionArgs {
    const void *q, *k, *v; void *out; // q and out: [T][heads][head_dim], q rows q_stride elements apart
    const int32_t *tables, *names; const int64_t *query_start, *seq_lens; // names: equal where sequences share a block
    int64_t num_seqs, table_stride, heads, kv_heads, head_dim, q_stride;
    int64_t block_size, block_stride, head_stride, token_stride; // of the pools, in elements
    int64_t window; // 0 = none
    int64_t split_below; // split long rows into parts when there are fewer jobs than this
    int64_t are_shared; // whether common prefixes are read once; results do not depend on it
    int64_t is_paired; // how 16 tokens of a block lie: see store_pairs in parts.h
    float scale;
};

struct Owner {
    int64_t seq, first, count; // queries [first, first + count) of the sequence
    int64_t slot = -1;         // where its parts' states begin, in floats; -1 = has none
    int64_t done = 0;          // keys before this one are in the slots when its own turn comes
    int64_t part_begin, part_end;
};
struct Job {
    int64_t owners, num_owners; // in AttentionPlan::members
    int64_t head, num_heads;    // more than one only of one owner
    int64_t begin, end;         // keys, within one part unless it ends
    bool ends;                  // merge all parts and write the output
    int64_t cost;
};
struct Phase {
    std::vector<Job> jobs;
    std::atomic<long> taken{0};
    Phase() = default;
    Phase(Phase &&o) : jobs(std::move(o.jobs)) {}
};

struct AttentionPlan {
    int64_t step = 0, window = -1;
    std::vector<Owner> owners;
    std::vector<int64_t> members;
    std::vector<Phase> phases;
    std::vector<float> slots;
    int64_t num_shared = 0; // reads of tiles saved by groups, per head
    static inline std::atomic<int64_t> num_shared_ever{0}; // over all plans of the process
};

class Planner {
    const AttentionArgs &a;
    AttentionPlan &plan;
    const long group, wide;
    const bool reads_runs; // few rows of several heads may pass a tile together
    std::vector<long> owner_of; // the first one of every sequence
    std::vector<long> order, common; // sequences that may share, sorted by table; keys in common with the next one

    long count_of(long s) const { return a.query_start[s + 1] - a.query_start[s]; }
    long start_of(long s) const { return a.seq_lens[s] - count_of(s); }
    const int32_t *names_of(long s) const { return a.names + s * a.table_stride; }
    long rows_of(const Owner &o) const { return o.count * group; }
    long slot_size(const Owner &o) const { return a.kv_heads * rows_of(o) * (wide + 2); }
    long heads_together(const Owner &o) const { return reads_runs && rows_of(o) <= FEW_ROWS ? std::min((long)a.kv_heads, ROWS_TOGETHER / rows_of(o)) : 1; }

    void give_slots(Owner &o, long &floats) const { o.slot = floats; floats += (o.part_end - o.part_begin) * slot_size(o); }

    void add_owners() {
        const long queries = std::max(UNIT_ROWS / group, 1L);
        for (long s = 0; s < a.num_seqs; s++) {
            owner_of.push_back(plan.owners.size());
            for (long first = 0; first < count_of(s); first += queries) {
                const long n = std::min(queries, count_of(s) - first), end = start_of(s) + first + n;
                const long low = a.window ? std::max(start_of(s) + first - a.window + 1, 0L) : 0;
                Owner o; o.seq = s; o.first = first; o.count = n; o.part_begin = low / PART; o.part_end = (end - 1) / PART + 1;
                plan.owners.push_back(o);
            }
        }
    }

    void find_common() {
        long longest = 0;
        for (long s = 0; s < a.num_seqs; s++) longest = std::max(longest, (long)a.seq_lens[s]);
        if (!a.are_shared || (a.window && longest > a.window)) return;
        for (long s = 0; s < a.num_seqs; s++) // rows enough of its own make a tile cheap
            if (count_of(s) > 0 && count_of(s) * group <= UNIT_ROWS / 4 && start_of(s) >= TILE) order.push_back(s);
        auto blocks = [&](long s) { return (start_of(s) + a.block_size - 1) / a.block_size; };
        std::sort(order.begin(), order.end(), [&](long x, long y) { // in the order of a dictionary
            const int32_t *p = names_of(x), *q = names_of(y);
            const long n = blocks(x), m = blocks(y), both = std::min(n, m), same = std::mismatch(p, p + both, q).first - p;
            return same < both ? p[same] < q[same] : n != m ? n < m : x < y;
        });
        for (size_t i = 0; i + 1 < order.size(); i++) {
            const long x = order[i], y = order[i + 1], n = std::min(blocks(x), blocks(y));
            const int32_t *p = names_of(x);
            const long keys = (std::mismatch(p, p + n, names_of(y)).first - p) * a.block_size;
            common.push_back(std::min(keys, std::min(start_of(x), start_of(y))) / TILE * TILE);
        }
    }

    // Sequences order[lo, hi) have their first depth keys behind them.
    void add_groups(long lo, long hi, long depth, long level, long &floats) {
        if (hi - lo < 2 || level >= MAX_DEPTH) return;
        const long least = *std::min_element(common.begin() + lo, common.begin() + hi - 1);
        const long saved = (least - depth) / TILE * (hi - lo - 1);
        if (least > depth && (saved >= MIN_SAVED_TILES || level == 0)) {
            plan.num_shared += saved;
            share(lo, hi, depth, least, level, floats);
            depth = least; level++;
        }
        long begin = lo;
        for (long i = lo; i < hi; i++)
            if (i == hi - 1 || common[i] <= std::max(depth, least)) {
                if (!(begin == lo && i == hi - 1)) add_groups(begin, i + 1, depth, level, floats);
                begin = i + 1;
            }
    }

    void share(long lo, long hi, long begin, long end, long level, long &floats) {
        while ((long)plan.phases.size() <= level) plan.phases.emplace_back();
        long all = 0, most = UNIT_ROWS; // fewer rows per job where threads would have nothing to do
        for (long i = lo; i < hi; i++) all += count_of(order[i]) * group;
        const long runs = a.kv_heads * ((end - 1) / PART - begin / PART + 1);
        while (most > MIN_GROUP_ROWS && runs * ((all + most - 1) / most) < a.split_below) most /= 2;
        for (long i = lo; i < hi;) {
            long rows = 0, last = i;
            while (last < hi && (last == i || rows + count_of(order[last]) * group <= most)) rows += count_of(order[last++]) * group;
            const long members = plan.members.size();
            for (long j = i; j < last; j++) {
                const long id = owner_of[order[j]];
                Owner &o = plan.owners[id];
                if (o.slot < 0) give_slots(o, floats);
                o.done = end;
                plan.members.push_back(id);
            }
            for (long h = 0; h < a.kv_heads; h++)
                for (long key = begin; key < end; key = (key / PART + 1) * PART) {
                    const long stop = std::min(end, (key / PART + 1) * PART);
                    plan.phases[level].jobs.push_back({members, last - i, h, 1, key, stop, false, (stop - key) * (rows + 16)});
                }
            i = last;
        }
    }

    long begin_of(const Owner &o) const { return std::max(o.part_begin * PART, (long)o.done); }
    long end_of(const Owner &o) const { return start_of(o.seq) + o.first + o.count; }
    bool has_parts(const Owner &o) const { return (end_of(o) - 1) / PART > begin_of(o) / PART; }

    // Heads of a job at most, so that every thread gets one; is_split: whether long rows are split.
    long max_heads(bool is_split) const {
        long most = a.kv_heads;
        for (;; most = (most + 1) / 2) {
            long jobs = 0;
            for (const Owner &o : plan.owners) {
                const long parts = is_split && has_parts(o) ? (end_of(o) - 1) / PART - begin_of(o) / PART + 1 : 1, heads = std::min(most, heads_together(o));
                jobs += parts * ((a.kv_heads + heads - 1) / heads);
            }
            if (most == 1 || 3 * jobs >= 2 * a.split_below) return most;
        }
    }

    void add_rest(long &floats) {
        long units = 0;
        for (const Owner &o : plan.owners) units += (a.kv_heads + heads_together(o) - 1) / heads_together(o);
        const bool is_split = units < a.split_below;
        const long most = max_heads(is_split);
        Phase parts, last;
        for (size_t id = 0; id < plan.owners.size(); id++) {
            Owner &o = plan.owners[id];
            const long end = end_of(o), begin = begin_of(o), heads = std::min(most, heads_together(o));
            const long members = plan.members.size();
            plan.members.push_back(id);
            const bool is_parted = is_split && has_parts(o);
            if (is_parted && o.slot < 0) give_slots(o, floats);
            for (long h = 0; h < a.kv_heads; h += heads) {
                const long n = std::min(heads, a.kv_heads - h), per_key = n * (rows_of(o) + 16);
                if (is_parted)
                    for (long key = begin; key < end; key = (key / PART + 1) * PART)
                        parts.jobs.push_back({members, 1, h, n, key, std::min(end, (key / PART + 1) * PART), false, PART * per_key});
                const long done = is_parted ? end : (long)o.done;
                last.jobs.push_back({members, 1, h, n, done, end, true, (end - std::max(begin, done)) * per_key});
            }
            if (is_parted) o.done = end;
        }
        if (!parts.jobs.empty()) plan.phases.push_back(std::move(parts));
        plan.phases.push_back(std::move(last));
    }

public:
    Planner(const AttentionArgs &args, AttentionPlan &into, bool has_dot)
        : a(args), plan(into), group(args.heads / args.kv_heads), wide((args.head_dim + BLOCK - 1) / BLOCK * BLOCK),
          reads_runs(has_dot && args.head_dim % 32 == 0 && args.block_size % RUN == 0) {}

    void run() {
        plan.owners.clear(); plan.members.clear(); plan.phases.clear(); plan.num_shared = 0;
        long floats = 0;
        add_owners();
        find_common();
        add_groups(0, order.size(), 0, 0, floats);
        add_rest(floats);
        plan.num_shared_ever += plan.num_shared;
        plan.slots.resize(floats);
        for (Phase &phase : plan.phases)
            std::stable_sort(phase.jobs.begin(), phase.jobs.end(), [](const Job &x, const Job &y) { return x.cost > y.cost; });
    }
};
