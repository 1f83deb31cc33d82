"""LLM over a real engine process and a tiny random model: results, streams, errors, the end."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xllm import LLM, SamplingParams
from xllm.errors import ConfigError, ContextTooLong, InvalidRequest

GREEDY = SamplingParams(max_tokens=6, temperature=0.0)
PROMPTS = ["Hello world", "The capital of France is", "1 + 2 ="]


@pytest.fixture(scope="module")
def llm(tiny_model_dir: Path) -> Iterator[LLM]:
    with LLM(tiny_model_dir, dtype="float32", device="cpu", num_threads=1, max_model_len=256) as llm:
        yield llm


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 100
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the engine process is still there"
        time.sleep(0.01)


def test_results_have_vllms_shape(llm: LLM) -> None:
    outs = llm.generate([*PROMPTS, {"prompt_token_ids": [5, 6, 7]}], GREEDY, use_tqdm=False)
    assert [out.prompt for out in outs] == [*PROMPTS, None]
    assert outs[3].prompt_token_ids == [5, 6, 7]
    assert len({out.request_id for out in outs}) == 4
    for out in outs:
        assert out.finished and len(out.outputs) == 1
        choice = out.outputs[0]
        assert (choice.index, len(choice.token_ids), choice.finish_reason) == (0, 6, "length")
        assert choice.text == llm.tokenizer.decode(choice.token_ids)
        assert choice.cumulative_logprob is None and choice.logprobs is None


def test_a_prompt_gives_the_same_alone_and_in_a_batch(llm: LLM) -> None:
    params = [
        SamplingParams(max_tokens=8, seed=3, n=2),
        GREEDY,
        SamplingParams(max_tokens=5, seed=9, top_k=20),
    ]
    together = llm.generate(PROMPTS, params, use_tqdm=False)
    for prompt, wanted, out in zip(PROMPTS, params, together, strict=True):
        alone = llm.generate(prompt, wanted, use_tqdm=False)[0]
        assert [c.token_ids for c in alone.outputs] == [c.token_ids for c in out.outputs]


def test_logprobs_and_prompt_logprobs(llm: LLM) -> None:
    params = SamplingParams(max_tokens=4, temperature=0.0, logprobs=3, prompt_logprobs=0)
    out = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]
    choice = out.outputs[0]
    assert choice.logprobs is not None and len(choice.logprobs) == 4
    for token, position in zip(choice.token_ids, choice.logprobs, strict=True):
        assert position[token].rank == 1 and len(position) == 3
    assert choice.cumulative_logprob == pytest.approx(
        sum(p[t].logprob for t, p in zip(choice.token_ids, choice.logprobs, strict=True))
    )
    assert out.prompt_logprobs is not None
    assert len(out.prompt_logprobs) == len(out.prompt_token_ids)
    assert out.prompt_logprobs[0] is None
    assert all(t in (p or {}) for t, p in zip(out.prompt_token_ids[1:], out.prompt_logprobs[1:], strict=True))


def test_a_repeated_prompt_hits_the_prefix_cache(llm: LLM) -> None:
    prompt = {"prompt_token_ids": [(7 * i) % 390 for i in range(100)]}
    first = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
    second = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 96)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


def test_chat_is_generate_on_the_rendered_template(llm: LLM) -> None:
    out = llm.chat([{"role": "user", "content": "Hello"}], GREEDY, use_tqdm=False)[0]
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert out.prompt == rendered
    same = llm.generate({"prompt_token_ids": llm.tokenizer.encode(rendered)}, GREEDY, use_tqdm=False)[0]
    assert out.outputs[0].token_ids == same.outputs[0].token_ids
    both = llm.chat(
        [[{"role": "user", "content": "Hello"}], [{"role": "user", "content": "1"}]], GREEDY, False
    )
    assert both[0].outputs[0].token_ids == out.outputs[0].token_ids


def test_stop_strings_cut_the_text(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[1], SamplingParams(max_tokens=40, temperature=0.0), use_tqdm=False)[
        0
    ].outputs[0]
    stop = whole.text[5:7]
    cut = llm.generate(
        PROMPTS[1], SamplingParams(max_tokens=40, temperature=0.0, stop=(stop,)), use_tqdm=False
    )[0].outputs[0]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.token_ids) < 40


def test_stream_pieces_are_the_whole(llm: LLM) -> None:
    params = SamplingParams(max_tokens=30, seed=5, n=2, ignore_eos=True)
    whole = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]
    texts, ids = ["", ""], [[], []]  # type: ignore[var-annotated]
    for piece in llm.stream(PROMPTS[0], params):
        texts[piece.index] += piece.text
        ids[piece.index] += piece.token_ids
    assert texts == [choice.text for choice in whole.outputs]
    assert ids == [choice.token_ids for choice in whole.outputs]


def test_wrong_requests_leave_nothing_behind(llm: LLM) -> None:
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    with pytest.raises(ContextTooLong):
        llm.generate(["fine", "x" * 3000, "fine"], long, use_tqdm=False)
    with pytest.raises(InvalidRequest, match="prompt"):
        llm.generate([5], use_tqdm=False)  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="prompt_token_ids"):
        llm.generate({"prompt_token_ids": [1.5]}, use_tqdm=False)
    with pytest.raises(InvalidRequest, match="messages"):
        llm.chat([{"role": "user", "colour": "red"}], use_tqdm=False)
    with pytest.raises(InvalidRequest, match="sampling_params"):
        llm.generate("x", SamplingParams(stop=(5,)), use_tqdm=False)  # type: ignore[arg-type]
    assert llm.generate([], use_tqdm=False) == []
    assert llm.generate("x", GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="max-model-len"):
        LLM("nowhere", max_model_length=3)


def test_close_ends_the_engine_and_later_calls_say_so(tiny_model_dir: Path) -> None:
    llm = LLM(tiny_model_dir, executor="timed:instant")
    pid = llm.engine_pid
    llm.generate("x", GREEDY, use_tqdm=False)
    llm.close()
    wait_gone(pid)
    llm.close()
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate("x", GREEDY, use_tqdm=False)


@pytest.mark.parametrize("used", ["not", "finished", "failed", "left"])
def test_deleting_ends_the_engine_without_a_collection(tiny_model_dir: Path, used: str) -> None:
    llm = LLM(tiny_model_dir, executor="timed:instant")
    pid = llm.engine_pid
    gc.disable()
    try:
        if used == "finished":
            llm.generate(["x", "y"], GREEDY, use_tqdm=False)
        elif used == "failed":
            with pytest.raises(ContextTooLong):
                llm.generate(["x", "y"], SamplingParams(max_tokens=10**6), use_tqdm=False)
        elif used == "left":
            for _ in llm.stream("x", SamplingParams(max_tokens=500, ignore_eos=True)):
                break
        del llm
        wait_gone(pid)
    finally:
        gc.enable()


def test_a_script_that_just_ends_leaves_no_engine(tiny_model_dir: Path) -> None:
    script = f"""
        from xllm import LLM
        if __name__ == "__main__":
            llm = LLM({str(tiny_model_dir)!r}, executor="timed:instant")
            print(llm.engine_pid)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    wait_gone(int(done.stdout))
