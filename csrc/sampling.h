// One token per row of logits: temperature, min-p, top-k, top-p, then the largest of logit + Gumbel noise. The rules and
// the noise are those of xllm/engine/kernels/sampling. Thresholds are looked for among the largest values first; where
// those do not settle them, by a histogram of which only the bin is sorted in which a threshold falls.
#pragma once
#include <algorithm>
#include <vector>
#include "largest.h"

INLINE uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15ull; x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull; x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}
INLINE vu fmix(vu x) { x ^= x >> 16; x *= 0x85EBCA6Bu; x ^= x >> 13; x *= 0xC2B2AE35u; return x ^ x >> 16; }
INLINE vf gumbel(vu ids, uint64_t key) {
    vu h = fmix(fmix(ids * 0x9E3779B1u + (uint32_t)key) + (uint32_t)(key >> 32));
    vf w = (__builtin_convertvector((vi)(h >> 1), vf) + 0.5f) * 4.656612873077392578125e-10f;
    w = w > 0.999999940395355224609375f ? splat(0.999999940395355224609375f) : w;
    vf u = 1.0f - w, d = u - 1.0f; // log1p(-w) after Kahan: the rounding of 1 - w is divided out
    vi is_one = d == (vf){};
    vf safe = is_one ? splat(-1.0f) : d, inner = vlog(u) * (w / safe); // -log1p(-w) = log(u) * (w / d)
    return -vlog(is_one ? w : inner);
}

struct RowSampler { // of one thread
    enum { FIRST = 256 }; // of the largest values are tried for top-p
    Largest largest;
    std::vector<float> scaled, weight, bin_values;
    std::vector<double> mass;
    std::vector<uint32_t> count;
    enum { BINS = 1 << 15 };

    static uint32_t bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u & 0x7fffffff; } // 0 = best, grows as x falls
    static long bin_of(float x) { return bits(x) >> 16; }

    void values_in(long bin, long vocab) {
        bin_values.clear();
        for (long i = 0; i < vocab; i++) if (bin_of(scaled[i]) == bin) bin_values.push_back(scaled[i]);
    }

    double weigh(long vocab, float least) { // exp of all; the sum of those that are at least least
        double total = 0;
        const long padded = (vocab + W - 1) / W * W;
        for (long s = 0; s < padded; s += Largest::SPAN) {
            vf sum = {};
            for (long i = s; i < std::min(padded, s + Largest::SPAN); i += W) {
                const vf x = load(&scaled[i]), y = vexp_low(x);
                store(&weight[i], y);
                sum += x >= least ? y : (vf){};
            }
            total += sum_of(sum);
        }
        return total;
    }

    // The last of the sorted values, -inf for none of them, before which less than wanted has been seen.
    float nucleus_of(double wanted, float limit, bool &is_settled) const {
        double seen = 0;
        float last = -INFINITY;
        const auto &found = largest.found;
        size_t i = 0;
        while (i < found.size() && found[i].value >= limit && (i == 0 || seen < wanted)) {
            last = found[i].value;
            for (; i < found.size() && found[i].value == last; i++) seen += exp((double)last);
        }
        is_settled = i < found.size();
        return last;
    }

    // The smallest logit that survives; scaled is filled.
    float threshold(long vocab, long top_k, float top_p, float least) {
        const bool by_k = top_k > 0 && top_k < vocab, by_p = top_p < 1;
        largest.summarise(scaled.data(), vocab);
        float bound = largest.bound(by_k ? top_k : std::min((long)FIRST, (long)largest.peaks.size()));
        if (by_k && bound == -INFINITY && vocab > 4096) return threshold_by_bins(vocab, top_k, top_p, least);
        bound = std::max(bound, least);
        largest.collect(scaled.data(), vocab, bound);
        auto &found = largest.found;
        float limit = least;
        if (by_k && (long)found.size() >= top_k) {
            std::nth_element(found.begin(), found.begin() + top_k - 1, found.end(), Largest::is_before);
            limit = std::max(limit, found[top_k - 1].value);
        }
        if (!by_p) return limit;
        bool is_settled;
        if (by_k) {
            found.erase(std::remove_if(found.begin(), found.end(), [&](const Largest::Value &v) { return v.value < limit; }), found.end());
            largest.sort();
            double total = 0;
            for (const auto &v : found) total += exp((double)v.value);
            return std::max(limit, nucleus_of(top_p * total, limit, is_settled));
        }
        const double total = weigh(vocab, least);
        largest.sort();
        const float nucleus = nucleus_of(top_p * total, limit, is_settled);
        return is_settled || bound == least ? std::max(limit, nucleus) : threshold_by_bins(vocab, 0, top_p, least);
    }

    // The same for any number of survivors.
    float threshold_by_bins(long vocab, long top_k, double top_p, float least) {
        if (top_p < 1) weigh(vocab, least);
        count.assign(BINS, 0); mass.assign(BINS, 0.0);
        const bool with_mass = top_p < 1;
        for (long i = 0; i < vocab; i++) {
            const float x = scaled[i];
            if (!(x >= least) || x == -INFINITY) continue;
            const long b = bin_of(x);
            count[b]++;
            if (with_mass) mass[b] += weight[i];
        }
        float limit = least; long last = BINS - 1;
        if (top_k > 0 && top_k < vocab) {
            long seen = 0, b = 0;
            while (b < BINS && seen + (long)count[b] < top_k) seen += count[b++];
            if (b < BINS) {
                values_in(b, vocab);
                std::nth_element(bin_values.begin(), bin_values.begin() + (top_k - seen - 1), bin_values.end(), std::greater<float>());
                limit = std::max(limit, bin_values[top_k - seen - 1]);
                last = b;
                if (with_mass) { // of the bin only what survives
                    mass[b] = 0;
                    for (long i = 0; i < vocab; i++) if (bin_of(scaled[i]) == b && scaled[i] >= limit) mass[b] += weight[i];
                }
            }
        }
        if (!with_mass) return limit;
        double total = 0, before = 0;
        for (long b = 0; b <= last; b++) total += mass[b];
        const double wanted = top_p * total;
        long bin = -1;
        for (long b = 0; b <= last; b++) {
            if (mass[b] == 0) continue;
            if (bin >= 0 && !(before < wanted)) break;
            bin = b;
            if (before + mass[b] < wanted) { before += mass[b]; continue; }
            break;
        }
        if (bin < 0) return limit;
        values_in(bin, vocab);
        std::sort(bin_values.begin(), bin_values.end(), std::greater<float>());
        if (before + mass[bin] <= before) return std::max(limit, bin_values.back());
        double seen = before; float nucleus = bin_values.front();
        for (size_t i = 0; i < bin_values.size();) {
            const float x = bin_values[i];
            if (x < limit || (i > 0 && !(seen < wanted))) break;
            nucleus = x;
            for (; i < bin_values.size() && bin_values[i] == x; i++) seen += exp((double)x);
        }
        return std::max(limit, nucleus);
    }

    int64_t draw(const float *logits, long vocab, float temperature, long top_k, float top_p, float min_p, uint64_t key) {
        vf top = splat(-INFINITY); vi bad = {}; long i = 0; float peak = -INFINITY; bool is_bad = false;
        for (; i + W <= vocab; i += W) { vf x = load(logits + i); bad |= x != x; top = vmax(x, top); }
        peak = max_of(top);
        is_bad = any_of(bad);
        for (; i < vocab; i++) { is_bad |= logits[i] != logits[i]; peak = std::max(peak, logits[i]); }
        if (is_bad || !(fabsf(peak) < INFINITY)) return 0; // the caller reports such rows
        const bool is_filtered = (top_k > 0 && top_k < vocab) || top_p < 1 || min_p > 0;
        const long padded = (vocab + W - 1) / W * W;
        if ((long)weight.size() < padded) scaled.resize(padded), weight.resize(padded); // weight last: either may find no memory
        for (i = 0; i + W <= vocab; i += W) {
            vf x = (load(logits + i) - peak) / temperature;
            store(&scaled[i], x);
        }
        for (; i < vocab; i++) scaled[i] = (logits[i] - peak) / temperature;
        for (; i < padded; i++) scaled[i] = -INFINITY;
        float limit = -INFINITY;
        if (is_filtered) {
            const float least = min_p > 0 ? (float)log((double)min_p) : -INFINITY;
            limit = (top_k > 0 && top_k < vocab) || top_p < 1 ? threshold(vocab, top_k, top_p, least) : least;
        }
        vf best = splat(-INFINITY); vi best_id = {};
        for (i = 0; i < padded; i += W) {
            vf x = load(&scaled[i]);
            vi alive = (x >= limit) & (x > -INFINITY);
            if (is_filtered) {
                if (!any_of(alive)) continue;
            }
            vi ids = iota() + (int32_t)i;
            vf score = x + gumbel((vu)ids, key);
            vi better = alive & (score > best);
            best = better ? score : best; best_id = better ? ids : best_id;
        }
        float top_score = max_of(best); int64_t found = vocab - 1;
        for (int j = 0; j < W; j++) if (best[j] == top_score && best_id[j] < found) found = best_id[j];
        return found;
    }
};
