// What a step's logits are changed by and asked for besides drawing: penalties, and log-probabilities with ranks. The
// rules are those of xllm/engine/runner/penalties.py and logprobs.py.
#pragma once
#include <algorithm>
#include "largest.h"

struct PenaltyArgs { // of one row; ids are distinct
    const int64_t *ids; const float *counts;
    int64_t row, num_ids;
    float frequency, presence, repetition;
};

static void penalise(float *logits, const PenaltyArgs &a) {
    for (long i = 0; i < a.num_ids; i++) {
        float &x = logits[a.ids[i]];
        const float minus = a.counts[i] * a.frequency + (a.counts[i] > 0 ? a.presence : 0.0f);
        x = (x > 0 ? x / a.repetition : x * a.repetition) - minus;
    }
}

// log of the sum of exponentials, in stretches of SPAN whose sums are added in double
static double log_sum(const float *x, long n, float peak) {
    double total = 0;
    long i = 0;
    for (; i + Largest::SPAN <= n; i += Largest::SPAN) {
        vf sum = {};
        for (long j = 0; j < Largest::SPAN; j += W) sum += vexp_low(load(x + i + j) - peak);
        total += sum_of(sum);
    }
    for (; i < n; i++) total += expf(x[i] - peak);
    return log(total) + peak;
}

// Of one row: log-probability and rank of a token, and of the num_top best ones (ids and log-probabilities), best first.
static void score(Largest &largest, const float *x, long n, long token, long num_top, float *logprob, int64_t *rank, int64_t *top_ids, float *top_logprobs) {
    largest.summarise(x, n);
    const double normaliser = log_sum(x, n, largest.peak());
    const float chosen = x[token];
    long better = 0, i = 0;
    vi count = {};
    for (; i + W <= n; i += W) count -= load(x + i) > splat(chosen);
    for (long j = 0; j < W; j++) better += count[j];
    for (; i < n; i++) better += x[i] > chosen;
    *logprob = (float)(chosen - normaliser); *rank = better + 1;
    if (!(fabs(normaliser) < INFINITY)) { // a broken row: nothing can be compared
        *rank = 1;
        for (long j = 0; j < num_top; j++) top_ids[j] = j, top_logprobs[j] = NAN;
        return;
    }
    if (!num_top) return;
    largest.collect(x, n, largest.bound(num_top));
    // -inf is a score too, when there is nothing better
    for (long j = 0; j < n && (long)largest.found.size() < num_top; j++) if (!(x[j] > -INFINITY)) largest.found.push_back({x[j], (int32_t)j});
    const long kept = std::min(num_top, (long)largest.found.size());
    std::partial_sort(largest.found.begin(), largest.found.begin() + kept, largest.found.end(), Largest::is_before);
    for (long j = 0; j < kept; j++) top_ids[j] = largest.found[j].id, top_logprobs[j] = (float)(largest.found[j].value - normaliser);
}
