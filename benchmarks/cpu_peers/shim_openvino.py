"""OpenVINO GenAI's continuous batching pipeline behind HTTP. Runs in OpenVINO's environment.

python shim_openvino.py MODEL --port 8103 --kv-gb 4
"""

from __future__ import annotations

import argparse
from itertools import count
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from shim_http import Request, ShimServer


def build_pipeline(model: str, kv_gb: int, num_threads: int) -> Any:
    """bfloat16 weights, activations and KV, as every system."""
    config = genai.SchedulerConfig()
    config.cache_size = kv_gb
    config.enable_prefix_caching = True
    config.max_num_batched_tokens = 2048
    config.max_num_seqs = 64
    config.dynamic_split_fuse = True
    precision = {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}
    return genai.ContinuousBatchingPipeline(
        model, config, "CPU", {"INFERENCE_NUM_THREADS": num_threads, **precision}
    )


def generation(max_tokens: int) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def serve(server: ShimServer, pipeline: Any) -> None:
    """Step while there is work; read tokens and take new requests between steps."""
    running: dict[Request, Any] = {}
    ids = count(1)
    while True:
        for request in server.poll(0.0 if running else None):
            prompt = ov.Tensor(np.array([request.prompt], dtype=np.int64))
            running[request] = pipeline.add_request(next(ids), prompt, generation(request.max_tokens))
        if pipeline.has_non_finished_requests():
            pipeline.step()
        for request, handle in list(running.items()):
            if not request.is_open:
                handle.cancel()
                del running[request]
                continue
            while handle.can_read():
                for output in handle.read().values():
                    server.send(request, list(output.generated_ids))
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                server.finish(request)
                del running[request]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kv-gb", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    pipeline = build_pipeline(args.model, args.kv_gb, args.threads)
    serve(ShimServer(args.port, args.model), pipeline)


if __name__ == "__main__":
    main()
