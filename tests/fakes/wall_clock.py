"""A wall clock that jumps: a library for LD_PRELOAD shifts what processes are told of the time of day, nothing else."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile double *shift_s;

__attribute__((constructor)) static void find_shift(void) {
    int file = open(getenv("WALL_CLOCK_SHIFT"), O_RDONLY);
    shift_s = (volatile double *)mmap(0, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
}

extern "C" int clock_gettime(clockid_t id, struct timespec *out) {
    static auto real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, out);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) out->tv_sec += (time_t)*shift_s;
    return status;
}

extern "C" int gettimeofday(struct timeval *__restrict out, void *__restrict zone) noexcept {
    static auto real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    int status = real(out, zone);
    out->tv_sec += (time_t)*shift_s;
    return status;
}

extern "C" time_t time(time_t *out) noexcept {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class WallClock:
    """``env`` for the processes that live by it; ``jump`` moves it for all of them at once."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            pytest.skip("no g++ on this machine")
        library, source = directory / "wall_clock.so", directory / "wall_clock.cpp"
        source.write_text(_SOURCE)
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True, timeout=120)
        self._shift = directory / "shift"
        self._shift.write_bytes(struct.pack("d", 0.0))
        self.env = {"LD_PRELOAD": str(library), "WALL_CLOCK_SHIFT": str(self._shift)}

    def jump(self, shift_s: float) -> None:
        """The time of day is that much off from now on."""
        with self._shift.open("r+b") as file:
            file.write(struct.pack("d", shift_s))
