// The largest values of a row without sorting it: the largest of every 64 values are enough to find a bound that few
// values reach, and only stretches that reach it are looked at again.
#pragma once
#include <algorithm>
#include <vector>
#include "vec.h"

struct Largest {
    enum { SPAN = 64 };
    struct Value { float value; int32_t id; };
    std::vector<float> peaks, order; // of every SPAN values
    std::vector<Value> found;

    void summarise(const float *x, long n) { // NaN among x: what is found is any of it
        peaks.resize((n + SPAN - 1) / SPAN);
        for (long s = 0; s < (long)peaks.size(); s++) {
            const float *p = x + s * SPAN;
            const long width = std::min(n - s * SPAN, (long)SPAN);
            if (width == SPAN) {
                vf top = load(p);
                for (long i = W; i < SPAN; i += W) top = vmax(load(p + i), top);
                peaks[s] = max_of(top);
            } else peaks[s] = *std::max_element(p, p + width);
        }
    }
    float peak() const { return *std::max_element(peaks.begin(), peaks.end()); }

    // A value that at least count values reach; -inf where the peaks do not tell.
    float bound(long count) {
        if (count > (long)peaks.size()) return -INFINITY;
        order = peaks;
        std::nth_element(order.begin(), order.begin() + count - 1, order.end(), std::greater<float>());
        return order[count - 1];
    }

    void collect(const float *x, long n, float bound) {
        found.clear();
        for (long s = 0; s < (long)peaks.size(); s++) {
            if (!(peaks[s] >= bound)) continue;
            for (long i = s * SPAN, end = std::min(n, i + SPAN); i < end; i++)
                if (x[i] >= bound && x[i] > -INFINITY) found.push_back({x[i], (int32_t)i});
        }
    }
    static bool is_before(const Value &a, const Value &b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }
    void sort() { std::sort(found.begin(), found.end(), is_before); }
};
