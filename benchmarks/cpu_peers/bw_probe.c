// Memory bandwidth right now: every thread reads its share of 400 MiB; prints the median of 7 passes in GB/s.
// gcc -O3 -march=native -ffast-math -fopenmp bw_probe.c -o bw_probe
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { PASSES = 7 };

static int by_value(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

int main(void) {
    const size_t bytes = 400ul << 20, count = bytes / sizeof(float);
    float *data = NULL;
    if (posix_memalign((void **)&data, 2 << 20, bytes)) return 1;
    madvise(data, bytes, MADV_HUGEPAGE);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < count; i++) data[i] = 1.0f;
    double seconds[PASSES];
    volatile float sink = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        double begin = omp_get_wtime();
        float total = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : total)
        for (size_t i = 0; i < count; i++) total += data[i];
        sink += total;
        seconds[pass] = omp_get_wtime() - begin;
    }
    qsort(seconds, PASSES, sizeof seconds[0], by_value);
    printf("%.1f\n", bytes / seconds[PASSES / 2] / 1e9);
    return 0;
}
