"""Cross checks of a resolved configuration: one named function each; all failures are reported together.

Checks of a single field stand beside the field, in its section's post-init.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xllm.config.load import raise_together
from xllm.config.machine_facts import MachineFacts
from xllm.config.memory_plan import activation_terms, format_memory
from xllm.config.pages import page_bytes_from
from xllm.config.resolved import ResolvedEngineConfig
from xllm.config.schema import format_bytes
from xllm.config.serve import EngineConfig
from xllm.errors import ConfigError

Check = Callable[[EngineConfig, ResolvedEngineConfig, MachineFacts], Iterator[ConfigError]]


def check(config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts) -> None:
    """Run every check.

    Raises:
        ConfigError: with all that failed.
    """
    raise_together(problem for named in CHECKS for problem in named(config, resolved, machine))


def check_device_exists(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """A GPU must be there when one is asked for."""
    if resolved.device == "cuda" and machine.gpu is None and not _is_timed(resolved):
        yield ConfigError("runner.device is cuda, but no GPU was found", hint="use --device cpu")


def check_graphs_are_built(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """The reference attention plans on the host, for every step anew: nothing a GPU could capture."""
    if resolved.device == "cuda" and resolved.graphs != "off":
        yield ConfigError(
            f"runner.graphs is {resolved.graphs}: graphs are not built on a GPU yet",
            hint="use --enforce-eager",
        )


def check_context_within_model(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """Positions beyond the model's range would be computed but meaningless."""
    longest = resolved.spec.max_context
    if resolved.max_model_len > longest:
        yield ConfigError(
            f"max_model_len is {resolved.max_model_len}, the model has positions for {longest}",
            hint=f"use --max-model-len {longest} or less",
        )


def check_budget_holds_a_prompt(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """Without chunked prefill the longest prompt must fit in one step."""
    budget, longest = resolved.max_num_batched_tokens, resolved.max_model_len
    if not resolved.enable_chunked_prefill and budget < longest:
        yield ConfigError(
            f"max_num_batched_tokens is {budget}, max_model_len {longest}, and prompts may not be cut",
            hint=f"use --max-num-batched-tokens {longest} or --enable-chunked-prefill",
        )


def check_one_kv_size(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """KV is sized in bytes or in blocks, not both."""
    if config.cache.num_gpu_blocks_override is not None and config.cache.kv_cache_memory_bytes is not None:
        yield ConfigError(
            "both kv_cache_memory_bytes and num_gpu_blocks_override are given", hint="give one of them"
        )


def check_memory_fits(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """The terms must fit together; the message names the one that is too big."""
    if _is_timed(resolved) or (resolved.device == "cuda" and machine.gpu is None):
        return
    plan = resolved.memory
    block_bytes = resolved.kv_layout.bytes_per_block()
    is_auto = config.cache.kv_cache_memory_bytes is None and config.cache.num_gpu_blocks_override is None
    has_room = plan.left_bytes >= block_bytes
    if has_room and (plan.kv_bytes <= plan.left_bytes or is_auto):
        return
    need = f"out of memory before loading: {format_memory(plan)}"
    least = plan.weights_bytes + plan.reserve_bytes + block_bytes
    if has_room:
        left = format_bytes(plan.left_bytes)
        yield ConfigError(f"{need}: KV is too big, {left} are left", hint=_smaller_kv(config, resolved))
    elif least > plan.budget_bytes:
        yield ConfigError(
            f"{need}: weights are too big", hint=_smaller_weights(config, resolved, machine, least)
        )
    else:
        yield ConfigError(f"{need}: activations are too big", hint=_smaller_step(resolved, least))


def check_kv_holds_a_sequence(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """The longest allowed sequence must fit in the KV blocks, or it could never finish."""
    capacity = resolved.num_blocks * resolved.block_size
    if capacity >= resolved.max_model_len:
        return
    blocks = -(-resolved.max_model_len // resolved.block_size)
    needed = blocks * resolved.kv_layout.bytes_per_block()
    can_shrink = f"--max-model-len {capacity}" if capacity >= 2 else ""
    can_grow = f"--kv-cache-memory-bytes {-(-needed // 1024**2)}MiB"
    if config.cache.num_gpu_blocks_override is not None:
        can_grow = f"--num-gpu-blocks-override {blocks}"
    fits = _is_timed(resolved) or needed <= resolved.memory.left_bytes
    hints = [hint for hint in (can_shrink, can_grow if fits else "") if hint]
    if not hints:
        return  # check_memory_fits has said what is too big
    yield ConfigError(
        f"{resolved.num_blocks} KV blocks hold {capacity} tokens, one sequence may have"
        f" {resolved.max_model_len} ({format_bytes(needed)})",
        hint="use " + " or ".join(hints),
    )


def check_pages_can_be_mapped(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts
) -> Iterator[ConfigError]:
    """Layout xtensor: host memory only, and every page must be mappable at the same time."""
    pages = resolved.pages
    if pages is None:
        return
    if resolved.device != "cpu":
        yield ConfigError("kv_layout xtensor is built for the CPU only", hint="use --kv-layout paged")
    if resolved.num_blocks <= pages.max_mappings:
        return
    token_bytes = pages.page_bytes // pages.tokens_per_page
    least = -(-resolved.num_blocks * pages.page_bytes // pages.max_mappings)
    works = page_bytes_from(least, token_bytes, machine.system_page_bytes)
    hint = f"use --kv-page-bytes {works}, or raise vm.max_map_count"
    if config.cache.num_gpu_blocks_override is not None:
        hint = f"use --num-gpu-blocks-override {pages.max_mappings}, or raise vm.max_map_count"
    yield ConfigError(
        f"{resolved.num_blocks} pages of {pages.page_bytes} bytes; {pages.max_mappings} can be mapped at once (half of"
        f" vm.max_map_count {machine.max_map_count}, with gaps)",
        hint=hint,
    )


CHECKS: tuple[Check, ...] = (
    check_device_exists,
    check_graphs_are_built,
    check_context_within_model,
    check_budget_holds_a_prompt,
    check_one_kv_size,
    check_memory_fits,
    check_kv_holds_a_sequence,
    check_pages_can_be_mapped,
)


def _is_timed(resolved: ResolvedEngineConfig) -> bool:
    return resolved.executor.startswith("timed:")


def _smaller_kv(config: EngineConfig, resolved: ResolvedEngineConfig) -> str:
    block_bytes = resolved.kv_layout.bytes_per_block()
    num_blocks = resolved.memory.left_bytes // block_bytes
    if config.cache.num_gpu_blocks_override is not None:
        return f"use --num-gpu-blocks-override {num_blocks}"
    fits = resolved.memory.left_bytes
    return f"use --kv-cache-memory-bytes {f'{fits // 1024**2}MiB' if fits > 64 * 1024**2 else fits}"


def _smaller_weights(
    config: EngineConfig, resolved: ResolvedEngineConfig, machine: MachineFacts, least_bytes: int
) -> str:
    plan = resolved.memory
    if resolved.dtype == "float32" and least_bytes - plan.weights_bytes // 2 <= plan.budget_bytes:
        return "use --dtype bfloat16"
    if resolved.device == "cuda" and machine.gpu is not None:
        share = -(-100 * (least_bytes + plan.activations_bytes) // machine.gpu.total_bytes) / 100
        if share <= 0.98 and share * machine.gpu.total_bytes <= machine.gpu.free_bytes:
            return f"use --gpu-memory-utilization {share:g}"
    return f"free memory or serve a smaller model: at least {format_bytes(least_bytes)} needed"


def _smaller_step(resolved: ResolvedEngineConfig, least_bytes: int) -> str:
    """Halve what costs most - tokens of a step, running sequences, length - until the estimate fits."""
    tokens, seqs, length = resolved.max_num_batched_tokens, resolved.max_num_seqs, resolved.max_model_len
    while max(tokens, seqs, length - 1) > 1:
        terms = activation_terms(
            resolved.spec,
            dtype=resolved.dtype,
            max_num_batched_tokens=tokens,
            max_num_seqs=seqs,
            max_model_len=length,
        )
        if least_bytes + sum(terms) <= resolved.memory.budget_bytes:
            return "use " + " ".join(
                f"{flag} {new}"
                for flag, new, old in (
                    ("--max-num-batched-tokens", tokens, resolved.max_num_batched_tokens),
                    ("--max-num-seqs", seqs, resolved.max_num_seqs),
                    ("--max-model-len", length, resolved.max_model_len),
                )
                if new != old
            )
        by_cost = sorted(zip(terms, ("tokens", "seqs", "length"), (tokens, seqs, length - 1), strict=True))
        largest = next(name for _, name, size in reversed(by_cost) if size > 1)
        if largest == "tokens":
            tokens //= 2
            length = length if resolved.enable_chunked_prefill else max(min(length, tokens), 2)
        elif largest == "seqs":
            seqs //= 2
        else:
            length = max(length // 2, 2)
    return f"free memory: at least {format_bytes(least_bytes)} and a few MiB for a step are needed"
