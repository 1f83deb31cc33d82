// One vector type of the widest width the target has, on the compiler's own vector extension, so that AVX-512,
// AVX2 and plain machines share one source. Every operation is per lane: a result never depends on the width of
// the batch, only on the variant that was compiled.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif
#if defined(__AVX512BF16__) && W == 16
#define HAS_DOT_BF16 1
#else
#define HAS_DOT_BF16 0
#endif

typedef uint16_t bf16;
typedef float vf __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef float vf_any __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(W * 2), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vf splat(float x) { return x - (vf){}; }
INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf x) { *(vf_any *)p = x; }
INLINE vf widen(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }
INLINE vf load(const bf16 *p) { return widen(*(const vh_any *)p); }
INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }

INLINE vh narrow(vf x) { // to nearest even; NaN stays NaN
#if HAS_DOT_BF16
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    vu u = (vu)x;
    vu r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vi is_nan = x != x;
    r = is_nan ? (vu){} + 0x7fc0 : r;
    return __builtin_convertvector(r, vh);
#endif
}
INLINE vf rounded_as(const float *, vf x) { return x; }
INLINE vf rounded_as(const bf16 *, vf x) { return widen(narrow(x)); }
INLINE void store(bf16 *p, vf x) { *(vh_any *)p = narrow(x); }
INLINE void from_float(float *p, float x) { *p = x; }
INLINE void from_float(bf16 *p, float x) {
    uint32_t u; memcpy(&u, &x, 4);
    *p = x != x ? 0x7fc0 : (bf16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
INLINE float sum_of(vf x) { // a fixed tree
#if W == 16
    return _mm512_reduce_add_ps((__m512)x);
#endif
    float t[W]; memcpy(t, &x, sizeof t);
    for (int n = W / 2; n; n /= 2) for (int i = 0; i < n; i++) t[i] += t[i + n];
    return t[0];
}
INLINE float max_of(vf x) {
#if W == 16
    return _mm512_reduce_max_ps((__m512)x);
#endif
    float t[W]; memcpy(t, &x, sizeof t);
    for (int n = W / 2; n; n /= 2) for (int i = 0; i < n; i++) t[i] = t[i] > t[i + n] ? t[i] : t[i + n];
    return t[0];
}
INLINE bool any_of(vi x) {
#if W == 16
    return _mm512_movepi32_mask((__m512i)x) != 0;
#else
    int any = 0;
    for (int i = 0; i < W; i++) any |= x[i];
    return any != 0;
#endif
}
INLINE vi iota() { vi x; for (int i = 0; i < W; i++) x[i] = i; return x; }

// exp, exactly 0 below -87; a polynomial on [-ln2/2, ln2/2] after Cephes (Moshier), error about 1 ulp. NaN stays.
// vexp_low: for x <= 0 or NaN.
INLINE vf vexp_low(vf y) {
    vi is_tiny = y < -87.0f;
    vf n = (y * 1.44269504f + 12582912.0f) - 12582912.0f;
    vf f = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * (f * f) + f + 1.0f;
    vi e = (__builtin_convertvector(n, vi) + 127) << 23;
    p = p * (vf)e;
    return is_tiny ? (vf){} : p;
}
// The same for weights that are rounded to bfloat16 at once: error below 1e-5 (minimax-like by Taylor's series on
// [-1/2, 1/2] of a power of two).
INLINE vf vexp_low(const float *, vf y) { return vexp_low(y); }
INLINE vf vexp_low(const bf16 *, vf y) {
#if W == 16
    const __m512 t = _mm512_max_ps(_mm512_set1_ps(-200.0f), (__m512)(y * 1.44269504f)); // NaN stays
    const __m512 n = _mm512_roundscale_ps(t, 0);
    const vf f = (vf)t - (vf)n;
    vf p = splat(1.3333558e-3f);
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return (vf)_mm512_scalef_ps((__m512)p, n);
#else
    return vexp_low(y);
#endif
}
INLINE vf vexp(vf x) { return vexp_low(x > 88.0f ? splat(88.0f) : x); }

// Natural logarithm of normal positive numbers, after Cephes; error about 1 ulp.
INLINE vf vlog(vf x) {
    vu u = (vu)x;
    vi e = (vi)(u >> 23) - 126;
    vf m = (vf)((u & 0x007fffff) | 0x3f000000); // [0.5, 1)
    vi is_low = m < 0.707106781186547524f;
    e = is_low ? e - 1 : e;
    m = is_low ? m + m - 1.0f : m - 1.0f;
    vf z = m * m, n = __builtin_convertvector(e, vf);
    vf p = splat(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    p = p * m * z;
    p = p + n * -2.12194440e-4f;
    p = p - z * 0.5f;
    return m + p + n * 0.693359375f;
}

#if W == 16
// 16 rows of 16 words -> columns.
INLINE void transpose16(const void *const *src, long offset_bytes, __m512i *out) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512((const char *)src[i] + offset_bytes);
    for (int i = 0; i < 8; i++) { t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]); t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]); }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]); r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]); r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88); t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88); t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88); out[i + 8] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        out[i + 4] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88); out[i + 12] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}
// The same into memory, columns ld words apart.
INLINE void transpose16(const void *const *src, long offset_bytes, uint32_t *dst, long ld) {
    __m512i out[16];
    transpose16(src, offset_bytes, out);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(dst + i * ld, out[i]);
}
#endif
