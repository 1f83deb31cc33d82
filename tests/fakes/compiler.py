"""Whether the CPU kernels can be built here: with a compiler, kernels that do not build are a failure, no reason to skip."""

from __future__ import annotations

import shutil

from xllm.engine.platform.native_build import COMPILERS

HAS_COMPILER = any(shutil.which(name) for name in COMPILERS)
