"""Train the bundled demo model, or evaluate one: `python recipes/train_demo_model.py --out DIR`.

Everything comes from the seed: the conversations, the tokenizer, the weights and the held-out set. With `--tokens`
the run has a fixed length; with `--minutes` the learning-rate schedule follows the clock instead, so two machines
see the same data in the same order but stop at different steps. Checkpoints allow `--resume`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from demo_data import Micro, train_tokenizer, window_data
from demo_export import export
from small_model import ModelShape, SmallModel
from tokenizers import Tokenizer
from torch import Tensor, nn

MAX_STEP_SECONDS = 15.0


@dataclass(frozen=True)
class Plan:
    """What the run does; exactly one of minutes and tokens sets its length."""

    seed: int = 7
    minutes: float | None = 75.0
    tokens: int | None = None
    tokens_per_step: int = 4096
    tokens_per_micro: int = 2048
    steps_per_window: int = 16
    max_length: int = 2048
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup_steps: int = 100
    late_from_step: int = 1600
    decay_share: float = 0.45
    ema_decay: float = 0.995


class Progress:
    """Tokens and seconds spent so far, over all resumed parts of a run; the same on every worker."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.step, self.tokens, self.seconds = plan, 0, 0, 0.0
        self._since = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the last call; a stopped process (a closed laptop) does not count as training."""
        before, self._since = self._since, time.monotonic()
        return min(self._since - before, MAX_STEP_SECONDS)

    def count(self, tokens: int, seconds: float) -> None:
        """Add one finished step."""
        self.tokens, self.seconds, self.step = self.tokens + tokens, self.seconds + seconds, self.step + 1

    @property
    def share(self) -> float:
        """The part of the run that is done, 0..1."""
        if self.plan.tokens is not None:
            return min(1.0, self.tokens / self.plan.tokens)
        assert self.plan.minutes is not None
        return min(1.0, self.seconds / (60 * self.plan.minutes))

    def lr_factor(self) -> float:
        """Warm up, stay, then fall linearly to zero over the last `decay_share` of the run."""
        warm = min(1.0, (self.step + 1) / self.plan.warmup_steps)
        return warm * min(1.0, max(0.0, (1.0 - self.share) / self.plan.decay_share))


def build_optimizers(model: SmallModel, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in name]
    rest = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed_tokens" in name]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_lr, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def step_stream(tokenizer: Tokenizer, plan: Plan, first_step: int) -> Iterator[list[Micro]]:
    """The rectangles of every optimizer step from `first_step` on, without end."""
    skip, window = first_step % plan.steps_per_window, first_step // plan.steps_per_window
    while True:
        steps = window_data(
            tokenizer, plan.seed, window, steps=plan.steps_per_window, tokens_per_step=plan.tokens_per_step,
            tokens_per_micro=plan.tokens_per_micro, max_length=plan.max_length,
            late=window * plan.steps_per_window >= plan.late_from_step,
        )  # fmt: skip
        yield from steps[skip:]
        skip, window = 0, window + 1


class Crew:
    """The training processes. Each takes every n-th rectangle; gradients are summed once per step.

    One thread per process and one meeting per step hold up much better than threads that meet at every
    operator when other programs use the same cores.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def total(self, values: list[float]) -> list[float]:
        """The sum of each value over all workers."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(tensor)
        return list(tensor.tolist())

    def total_gradients(self, model: nn.Module) -> None:
        """Sum every gradient over all workers, in place."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for parameter, piece in zip(model.parameters(), pieces, strict=True):
            parameter.grad = piece.view_as(parameter)


def train_step(
    model: SmallModel, optimizers: list[torch.optim.Optimizer], micros: list[Micro], progress: Progress, crew: Crew,
    device: str,
) -> float:  # fmt: skip
    """One optimizer step; returns the mean loss per learned token."""
    plan, mine = progress.plan, micros[crew.rank :: crew.size]
    targets, total = sum(micro.num_targets for micro in micros), 0.0
    for micro in mine:
        with torch.autocast(device, torch.bfloat16):
            loss = model.loss(micro.tokens.to(device), micro.targets.to(device)) / targets
        loss.backward()
        total += loss.item()
    crew.total_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    factor = progress.lr_factor()
    for optimizer, base in zip(optimizers, (plan.muon_lr, plan.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = base * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # Every worker takes the clock of worker 0, or their learning rates would drift apart.
    total, seconds = crew.total([total, progress.elapsed() if crew.rank == 0 else 0.0])
    progress.count(sum(micro.num_tokens for micro in micros), seconds)
    return total


def save_checkpoint(
    path: Path,
    model: SmallModel,
    ema: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Write atomically: a killed run keeps its last whole checkpoint."""
    state = {
        "model": model.state_dict(), "ema": ema, "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds,
    }  # fmt: skip
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def shown_command(args: argparse.Namespace, plan: Plan) -> str:
    """The command without the paths of this machine."""
    length = f"--minutes {plan.minutes:g}" if plan.tokens is None else f"--tokens {plan.tokens}"
    return f"python recipes/train_demo_model.py --out DIR {length} --seed {plan.seed} --device {args.device}"


def describe(args: argparse.Namespace, plan: Plan, shape: ModelShape) -> dict[str, object]:
    """Machine, versions and command: what a reader needs to repeat the run."""
    import tokenizers

    return {
        "command": shown_command(args, plan), "plan": asdict(plan), "shape": asdict(shape),
        "parameters": sum(weight.numel() for weight in SmallModel(shape).parameters()),
        "device": args.device, "workers": args.workers, "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"
        + (f", {torch.cuda.get_device_name()}" if args.device == "cuda" else ""),
        "python": platform.python_version(), "torch": torch.__version__, "tokenizers": tokenizers.__version__,
    }  # fmt: skip


def train(args: argparse.Namespace, plan: Plan, shape: ModelShape, crew: Crew) -> dict[str, object]:
    """The whole run; returns what happened."""
    work = Path(args.work or f"{args.out}.work")
    checkpoint = work / "checkpoint.pt"
    torch.manual_seed(plan.seed)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    model = SmallModel(shape).to(args.device)
    optimizers, progress = build_optimizers(model, plan), Progress(plan)
    ema = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        ema = state["ema"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        progress.step, progress.tokens, progress.seconds = state["step"], state["tokens"], state["seconds"]
    facts = describe(args, plan, shape)
    if crew.rank == 0:
        print(facts, f"parameters={sum(p.numel() for p in model.parameters()):,}", flush=True)
    saved_at = time.monotonic()
    batches = step_stream(tokenizer, plan, progress.step)
    parent = os.getppid()
    while progress.share < 1.0:
        if os.getppid() != parent:
            raise SystemExit("the training command was ended; its worker stops too")
        loss = train_step(model, optimizers, next(batches), progress, crew, args.device)
        if crew.rank != 0:
            continue
        decay = min(plan.ema_decay, progress.step / (progress.step + 10))
        torch._foreach_lerp_(list(ema.values()), list(model.state_dict().values()), 1.0 - decay)
        if progress.step % 25 == 0:
            rate = progress.tokens / progress.seconds
            print(f"step {progress.step} share {progress.share:.3f} tokens {progress.tokens:,} "
                  f"loss {loss:.4f} lr x{progress.lr_factor():.3f} {rate:.0f} tokens/s", flush=True)  # fmt: skip
        if time.monotonic() - saved_at > 60 * args.checkpoint_minutes:
            save_checkpoint(checkpoint, model, ema, optimizers, progress)
            export(ema, shape, tokenizer, work / "latest")
            saved_at = time.monotonic()
    if crew.rank == 0:
        save_checkpoint(checkpoint, model, ema, optimizers, progress)
        export(ema, shape, tokenizer, Path(args.out))
    return facts | {
        "steps": progress.step, "trained_tokens": progress.tokens, "train_seconds": round(progress.seconds),
        "tokens_per_second": round(progress.tokens / progress.seconds),
    }  # fmt: skip


def train_as_worker(rank: int, args: argparse.Namespace, plan: Plan, meeting_file: str) -> None:
    """Body of one of several training processes; worker 0 writes what happened to training.json."""
    torch.set_num_threads(args.threads or 1)
    if args.workers > 1:
        store = torch.distributed.FileStore(meeting_file, args.workers)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=args.workers)
    facts = train(args, plan, ModelShape(), Crew(rank, args.workers))
    if rank == 0:
        (Path(args.work) / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if args.workers > 1:
        torch.distributed.barrier()  # nobody leaves while worker 0 still exports: a lost peer would abort it
        torch.distributed.destroy_process_group()


def run_training(args: argparse.Namespace, plan: Plan) -> dict[str, object]:
    """Make the tokenizer, run the workers, return what happened."""
    args.work = args.work or f"{args.out}.work"
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    if not (args.resume and (work / "tokenizer.json").exists()):
        tokenizer = train_tokenizer(plan.seed, vocab_size=ModelShape().vocab_size)
        tokenizer.save(str(work / "tokenizer.json"))
    if args.workers == 1:
        train_as_worker(0, args, plan, "")
    else:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (args, plan, str(Path(folder) / "meeting"))
            torch.multiprocessing.spawn(train_as_worker, arguments, nprocs=args.workers)
    return dict(json.loads((work / "training.json").read_text(encoding="utf-8")))


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="directory of the trained model")
    parser.add_argument("--eval-only", metavar="DIR", help="evaluate this directory and train nothing")
    parser.add_argument("--minutes", type=float, help="length of the run by the clock (default 75)")
    parser.add_argument("--tokens", type=int, help="length of the run in tokens, instead of --minutes")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, help="training processes (default: 2 on a CPU, 1 on a GPU)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--work", help="directory of checkpoints (default OUT.work)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--results", help="write the evaluation's JSON here")
    parser.add_argument(
        "--eval-limit", type=int, default=0, help="at most this many questions per family; 0 = all"
    )
    args = parser.parse_args()
    if not args.out and not args.eval_only:
        parser.error("--out DIR or --eval-only DIR is needed")
    args.workers = args.workers or (2 if args.device == "cpu" else 1)
    return args


def main() -> None:
    """Train unless --eval-only, then evaluate and print."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    plan = Plan(seed=args.seed, minutes=None if args.tokens else (args.minutes or 75.0), tokens=args.tokens)
    report: dict[str, object] = {}
    if not args.eval_only:
        report["training"] = run_training(args, plan)
    from demo_card import write_card
    from demo_eval import evaluate, write_report

    directory = Path(args.eval_only or args.out)
    report["evaluation"] = evaluate(directory, seed=args.seed, limit=args.eval_limit, device=args.device)
    write_report(report, Path(args.results) if args.results else None)
    if "training" in report:
        write_card(report, directory)


if __name__ == "__main__":
    main()
