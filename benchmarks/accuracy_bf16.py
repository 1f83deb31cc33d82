"""How exact bfloat16 on a CPU is: mean |logit - float32 logit| of xLLM divided by that of transformers' bfloat16.

    python benchmarks/accuracy_bf16.py [--seeds 5] [--layers 16] [--hidden 512]
                                       [--json benchmarks/results/accuracy_bf16.json]

Random models of every family, weights rounded to bfloat16 before either side gets them, prompts of 40 and 90 tokens in
chunks of 32 through the production scheduler and runner; means over seeds, ten times as many where tokens choose
experts. Below 1: closer to float32 than transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import transformers

from benchmarks.environment import describe
from tests.numeric.accuracy import CHOOSING, WAYS, error_ratios, family_settings
from xllm.engine.platform.native import native_library

LENGTHS = [40, 90]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    library = native_library()
    if library is None:
        sys.exit("the CPU kernels cannot be built here")
    results = {}
    for name, (family, settings) in family_settings(args.hidden, args.layers).items():
        seeds = range(args.seeds * (10 if name == CHOOSING else 1))
        with tempfile.TemporaryDirectory() as directory:
            ratios = error_ratios(
                family, settings, Path(directory), seeds=seeds, lengths=LENGTHS, ways=list(WAYS)
            )
        results[name] = ratios
        print(f"{name:26} " + ", ".join(f"{way} {ratio:.3f}" for way, ratio in ratios.items()), flush=True)
    environment = describe() | {"variant": library.variant, "seeds": list(range(args.seeds))}
    print(json.dumps(environment))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
