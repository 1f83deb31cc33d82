// The largest values of a row without sorting it: the largest of every 64 values are enough to find a bound that few
// values reach, and only stretches that reach it are looked at again.
#pragma once
#include <algorithm>
#include <vector>
#include "vec.h"

// The largest value of a row and where it stands first; NaN, and where, if there is one.
static float largest_of(const float *x, long n, int64_t &at) {
    const long span = 1024;
    float best = -INFINITY;
    at = 0;
    for (long begin = 0; begin < n; begin += span) {
        const long end = std::min(n, begin + span);
        float top = -INFINITY;
        long i = begin;
        if (end - begin >= 4 * W) {
            vf a = load(x + i), b = load(x + i + W), c = load(x + i + 2 * W), d = load(x + i + 3 * W);
            vi bad = (a != a) | (b != b) | (c != c) | (d != d);
            for (i += 4 * W; i + 4 * W <= end; i += 4 * W) {
                const vf e = load(x + i), f = load(x + i + W), g = load(x + i + 2 * W), h = load(x + i + 3 * W);
                bad |= (e != e) | (f != f) | (g != g) | (h != h);
                a = vmax(e, a); b = vmax(f, b); c = vmax(g, c); d = vmax(h, d);
            }
            top = any_of(bad) ? NAN : max_of(vmax(vmax(a, b), vmax(c, d)));
        }
        for (; i < end; i++) if (top == top && !(x[i] <= top)) top = x[i]; // a NaN replaces all and stays
        if (top > best || top != top) {
            best = top;
            for (at = begin; top == top ? x[at] != top : x[at] == x[at];) at++;
            if (top != top) return best;
        }
    }
    return best;
}

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
