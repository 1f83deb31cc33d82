// Matrix products with one operand packed. Columns come in blocks of 64; float32 is packed [k][64], bf16 in pairs of
// k, [k/2][64][2], what a bf16 dot product wants. Every element is summed over k in one accumulator, in order,
// whatever the number of rows: a row's result does not depend on the rows beside it.
#pragma once
#include "vec.h"

#define BLOCK 64
#define MAX_ROWS 6
#ifndef CHAINS // accumulators of one element with few rows; more than one is only to measure what the order of a sum costs
#define CHAINS 1
#endif
#define GROUP_ROWS 24 // rows whose sums stay in the first cache together
#define AHEAD_BYTES 8192
#define FETCH_BYTES 32768

template <int R> struct Chains { enum { n = R <= 2 ? CHAINS : 1 }; };

// C[R][NV*W] (+)= A[R][K] * B[K][...]; ldb in columns. Accumulators live in registers.
// FAR: the operand comes from memory, not from a cache. ahead: what will be read next, fetched LINES cache lines at a
// time while this is multiplied, or null.
template <int R, int NV, int LINES>
INLINE void micro(const float *a, long lda, const float *b, long ldb, long k_count, float *c, long ldc, bool add, const char *ahead) {
    vf acc[R][NV];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < NV; j++) acc[r][j] = add ? load(c + r * ldc + j * W) : (vf){};
    for (long k = 0; k < k_count; k++) {
        const float *p = b + k * ldb;
        vf w[NV];
        for (int j = 0; j < NV; j++) w[j] = load(p + j * W);
        for (int j = 0; j < LINES; j++) __builtin_prefetch(ahead + (k * LINES + j) * 64);
        for (int r = 0; r < R; r++) {
            vf x = splat(a[r * lda + k]);
            for (int j = 0; j < NV; j++) acc[r][j] += x * w[j];
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < NV; j++) store(c + r * ldc + j * W, acc[r][j]);
}

// bf16: k_count is even.
template <int R, int NV, int LINES>
INLINE void micro(const bf16 *a, long lda, const bf16 *b, long ldb, long k_count, float *c, long ldc, bool add, const char *ahead) {
    constexpr long chains = Chains<R>::n;
    vf all[chains][R][NV] = {};
    for (int r = 0; r < R; r++)
        for (int j = 0; j < NV; j++) all[0][r][j] = add ? load(c + r * ldc + j * W) : (vf){};
    for (long k0 = 0; k0 < k_count / 2; k0 += chains)
    for (long chain = 0; chain < chains; chain++) {
        const long k = k0 + chain;
        if (chains > 1 && k >= k_count / 2) break;
        vf (*const acc)[NV] = all[chain];
        const bf16 *p = b + k * ldb * 2;
        vu w[NV];
        for (int j = 0; j < NV; j++) w[j] = *(const vu_any *)(p + j * W * 2);
        for (int j = 0; j < LINES; j++) __builtin_prefetch(ahead + (k * LINES + j) * 64);
        for (int r = 0; r < R; r++) {
            uint32_t pair; memcpy(&pair, a + r * lda + 2 * k, 4);
#if HAS_DOT_BF16
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)pair);
            for (int j = 0; j < NV; j++) acc[r][j] = (vf)_mm512_dpbf16_ps((__m512)acc[r][j], x, (__m512bh)w[j]);
#else
            uint32_t lo = pair << 16, hi = pair & 0xffff0000u; float x0, x1;
            memcpy(&x0, &lo, 4); memcpy(&x1, &hi, 4);
            for (int j = 0; j < NV; j++) {
                acc[r][j] += splat(x0) * (vf)(w[j] << 16);
                acc[r][j] += splat(x1) * (vf)(w[j] & 0xffff0000u);
            }
#endif
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < NV; j++) {
            for (long chain = 1; chain < chains; chain++) all[0][r][j] += all[chain][r][j];
            store(c + r * ldc + j * W, all[0][r][j]);
        }
}

template <int R> struct Wide { // vectors of columns at once: as many accumulators as registers hold
#if W == 16
    enum { n = 4 };
#else
    enum { n = R == 1 ? 8 : R == 2 ? 4 : 2 };
#endif
};

// C[R][columns], columns a multiple of 64.
template <int R, int LINES, typename T>
INLINE void strip(const T *a, long lda, const T *b, long ldb, long k, long columns, float *c, long ldc, bool add, const char *ahead) {
    const long step = Wide<R>::n * W, pair = sizeof(T) == 2 ? 2 : 1;
    constexpr int lines = W == 16 ? LINES : 0; // narrower vectors pass over the operand more than once
    for (long n = 0; n < columns; n += step) micro<R, Wide<R>::n, lines>(a, lda, b + n * pair, ldb, k, c + n, ldc, add, ahead);
}

// Any number of rows. Noinline: one copy of the register kernels per type.
template <int LINES, typename T>
__attribute__((noinline)) static void product(long rows, const T *a, long lda, const T *b, long ldb, long k, long columns,
                                              float *c, long ldc, bool add, const char *ahead = nullptr) {
    for (long m = 0; m < rows; m += MAX_ROWS) {
        const T *x = a + m * lda; float *y = c + m * ldc;
        switch (rows - m) {
            case 1: strip<1, LINES>(x, lda, b, ldb, k, columns, y, ldc, add, ahead); break;
            case 2: strip<2, LINES>(x, lda, b, ldb, k, columns, y, ldc, add, ahead); break;
            case 3: strip<3, LINES>(x, lda, b, ldb, k, columns, y, ldc, add, ahead); break;
            case 4: strip<4, LINES>(x, lda, b, ldb, k, columns, y, ldc, add, ahead); break;
            case 5: strip<5, LINES>(x, lda, b, ldb, k, columns, y, ldc, add, ahead); break;
            default: strip<6, LINES>(x, lda, b, ldb, k, columns, y, ldc, add, ahead); break;
        }
    }
}

// w [N][K] -> packed; N is padded with zero rows to a multiple of 64.
template <typename T> static void pack_block(const T *w, T *out, long n_count, long k_count, long block) {
    const long pair = sizeof(T) == 2 ? 2 : 1;
    T *o = out + block * BLOCK * k_count;
    long done = 0;
#if W == 16
    if ((block + 1) * BLOCK <= n_count)
        for (; done + 16 * pair <= k_count; done += 16 * pair)
            for (long n = 0; n < BLOCK; n += 16) {
                const void *rows[16];
                for (int i = 0; i < 16; i++) rows[i] = w + (block * BLOCK + n + i) * k_count;
                transpose16(rows, done * sizeof(T), (uint32_t *)o + done / pair * BLOCK + n, BLOCK);
            }
#endif
    for (long n = 0; n < BLOCK; n++) {
        long row = block * BLOCK + n;
        const T *src = w + row * k_count;
        for (long k = done; k < k_count; k++)
            o[(k / pair) * BLOCK * pair + n * pair + k % pair] = row < n_count ? src[k] : T(0);
    }
}

// One row of w back out of the packed form.
template <typename T> static void unpack_row(const T *packed, long row, long k_count, T *out) {
    const long pair = sizeof(T) == 2 ? 2 : 1;
    const T *p = packed + row / BLOCK * BLOCK * k_count + row % BLOCK * pair;
    for (long k = 0; k < k_count; k++) out[k] = p[(k / pair) * BLOCK * pair + k % pair];
}

// What is done with 64 finished columns of up to MAX_ROWS rows.
enum Finish { WRITE = 0, ADD_TO = 1 };

// Thread id of nt computes its share of y [M][N] = x [M][K] * packed (+ bias), or adds it to y; no barrier.
// Shares are runs of (column block, share of rows): few rows give each thread columns, many rows also split rows.
template <typename T, typename O>
static void linear_share(const T *x, long m_count, const T *packed, long n_count, long k_count, const T *bias, O *y,
                         Finish finish, int id, int nt) {
    const long blocks = (n_count + BLOCK - 1) / BLOCK;
    const long share = blocks >= 4 * nt || m_count < 192 ? m_count : 192;
    const long chunks = (m_count + share - 1) / share;
    const long begin = blocks * chunks * id / nt, end = blocks * chunks * (id + 1) / nt;
    for (long item = begin; item < end; item++) {
        const long block = item / chunks, m0 = item % chunks * share;
        const long m1 = m0 + share < m_count ? m0 + share : m_count;
        const long width = n_count - block * BLOCK < BLOCK ? n_count - block * BLOCK : BLOCK;
        const T *b = packed + block * BLOCK * k_count;
        // Few rows take the weights through in chunks that fit the first cache beside the rows: memory is read at its
        // speed while the rows are multiplied. Sums that wait in the tile lose nothing: they are the accumulators.
        const long chunk = m1 - m0 <= 2 * GROUP_ROWS ? 128 : 1024;
        for (long m = m0; m < m1; m += GROUP_ROWS) {
            const long rows = m1 - m < GROUP_ROWS ? m1 - m : GROUP_ROWS;
            const long passes = (rows + MAX_ROWS - 1) / MAX_ROWS;
            float tile[GROUP_ROWS * BLOCK] __attribute__((aligned(64)));
            for (long k0 = 0; k0 < k_count; k0 += chunk) {
                const long k = k_count - k0 < chunk ? k_count - k0 : chunk;
                const T *a = x + m * k_count + k0, *w = b + k0 * BLOCK;
                const bool add = k0 > 0, is_far = m == m0;
                const char *next = (const char *)(w + k * BLOCK);
                const long bytes = k * BLOCK * sizeof(T);
                for (long pass = 0, r = 0; pass < passes; pass++) {
                    const long r1 = rows * (pass + 1) / passes;
                    const T *p = a + r * k_count; float *t = tile + r * BLOCK;
                    if (!is_far) product<0>(r1 - r, p, k_count, w, BLOCK, k, BLOCK, t, BLOCK, add);
                    else if (passes == 1) product<4>(r1 - r, p, k_count, w, BLOCK, k, BLOCK, t, BLOCK, add, (const char *)w + AHEAD_BYTES);
                    else if (passes <= 3 && pass < 2) product<2>(r1 - r, p, k_count, w, BLOCK, k, BLOCK, t, BLOCK, add, next + pass * bytes / 2);
                    else if (passes <= 3) product<0>(r1 - r, p, k_count, w, BLOCK, k, BLOCK, t, BLOCK, add);
                    else product<1>(r1 - r, p, k_count, w, BLOCK, k, BLOCK, t, BLOCK, add, next + pass * bytes / 4);
                    r = r1;
                }
            }
            for (long r = 0; r < rows; r++) {
                O *o = y + (m + r) * n_count + block * BLOCK;
                float *t = tile + r * BLOCK;
                if (bias) for (long n = 0; n < width; n++) t[n] += to_float(bias[block * BLOCK + n]);
                if (width == BLOCK)
                    for (long n = 0; n < BLOCK; n += W) store(o + n, finish == ADD_TO ? load(o + n) + load(t + n) : load(t + n));
                else
                    for (long n = 0; n < width; n++) from_float(o + n, finish == ADD_TO ? to_float(o[n]) + t[n] : t[n]);
            }
        }
    }
}

// Fetch the start of what this thread multiplies with next, before it waits for the others or does something small:
// with few rows memory is the limit, and it would stand still meanwhile. The same shares as above.
template <typename T> static void fetch_share(const T *packed, long m_count, long n_count, long k_count, int id, int nt) {
    if (m_count > GROUP_ROWS || !packed) return;
    const long blocks = (n_count + BLOCK - 1) / BLOCK;
    const char *p = (const char *)(packed + blocks * id / nt * BLOCK * k_count);
    for (long i = 0; i < FETCH_BYTES; i += 64) __builtin_prefetch(p + i, 0, 2);
}
