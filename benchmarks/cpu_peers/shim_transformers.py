"""transformers' `generate` behind HTTP. Runs in transformers' environment.

    python shim_transformers.py MODEL --port 8104 --kv-tokens 18000

`transformers serve` refuses prompts of token ids and has no `ignore_eos`, so lengths could not be held
equal. Requests that wait together and are alike in length run as one static batch, at most 64; others wait
until it has ended.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from shim_http import Request, ShimServer
from transformers import AutoModelForCausalLM, GenerationConfig

_MAX_BATCH = 64
_GATHER_S = 0.005


class Sender:
    """A stopping criterion that never stops: it sees every step's tokens."""

    def __init__(self, server: ShimServer, batch: list[Request], arrived: list[Request]) -> None:
        self.server, self.batch, self.arrived = server, batch, arrived

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for request, token in zip(self.batch, ids[:, -1].tolist(), strict=True):
            self.server.send(request, [token])
        self.arrived += self.server.poll(0.0)
        is_stale = not any(request.is_open for request in self.batch)
        return torch.full((ids.shape[0],), is_stale, dtype=torch.bool)


def run_batch(model: Any, server: ShimServer, batch: list[Request], waiting: list[Request]) -> None:
    ids = torch.tensor([request.prompt for request in batch])
    num = batch[0].max_tokens
    config = GenerationConfig(
        max_new_tokens=num, min_new_tokens=num, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    sender = Sender(server, batch, waiting)
    model.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=config, stopping_criteria=[sender]
    )
    for request in batch:
        server.finish(request)


def serve(model: Any, server: ShimServer, kv_tokens: int) -> None:
    waiting: list[Request] = []
    while True:
        waiting += server.poll(0.0 if waiting else None)
        while more := server.poll(_GATHER_S):
            waiting += more
        waiting = [request for request in waiting if request.is_open]
        if not waiting:
            continue
        first = waiting[0]
        alike = [
            request
            for request in waiting
            if len(request.prompt) == len(first.prompt) and request.max_tokens == first.max_tokens
        ]
        fitting = max(1, kv_tokens // (len(first.prompt) + first.max_tokens))
        batch = alike[: min(_MAX_BATCH, fitting)]
        waiting = [request for request in waiting if request not in batch]
        run_batch(model, server, batch, waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-tokens", type=int, required=True, help="tokens a batch may hold")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    serve(model, ShimServer(args.port, args.model), args.kv_tokens)


if __name__ == "__main__":
    main()
