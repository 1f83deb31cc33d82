"""The fixed held-out evaluation of the demo model, run with transformers (not with xLLM) so that it is a second opinion."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_world.mix import evaluation_documents
from small_world.phrases import Document
from small_world.rendering import segments

GATES = {
    "capitals": 0.95, "facts": 0.95, "sums": 0.90, "json": 0.95, "tools": 0.95, "followups": 0.85,
}  # fmt: skip
MAX_NEW_TOKENS = {"stories": 512, "texts": 260, "mixed": 260}


def _parse_calls(text: str) -> list[dict[str, Any]] | None:
    calls = []
    for body in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL):
        try:
            calls.append(json.loads(body))
        except json.JSONDecodeError:
            return None
    return calls


def is_right(document: Document, answer: str) -> bool:
    """True when the answer holds everything that this question asks for."""
    if document.expect_calls:
        return _parse_calls(answer) == document.expect_calls
    if document.expect_json is not None:
        try:
            return bool(json.loads(answer) == document.expect_json)
        except json.JSONDecodeError:
            return False
    if "<think>" in answer and document.expect[:1] != ["<think>"]:
        return False
    if document.family == "stories":
        words = answer.split()
        fresh = len({" ".join(words[i : i + 8]) for i in range(len(words))}) / max(1, len(words))
        return fresh > 0.95 and all(part in answer for part in document.expect)
    return all(_holds(answer, part) for part in document.expect)


def _holds(answer: str, part: str) -> bool:
    """Whether the part stands in the answer as whole words; case counts for short parts such as "Au"."""
    left = r"(?<!\w)" if part[:1].isalnum() else ""
    right = r"(?!\w)" if part[-1:].isalnum() else ""
    flags = re.IGNORECASE if len(part) > 2 else 0
    return re.search(left + re.escape(part) + right, answer, flags) is not None


def is_well_formed(document: Document, answer: str) -> bool | None:
    """Valid JSON or a valid call of an offered tool, whatever it says; None where neither is asked for."""
    if document.expect_calls:
        calls = _parse_calls(answer)
        names = [tool["function"]["name"] for tool in document.tools]
        return bool(calls) and all(call.get("name") in names for call in calls or [])
    if document.expect_json is not None:
        try:
            json.loads(answer)
        except json.JSONDecodeError:
            return False
        return True
    return None


class Answerer:
    """Greedy answers in batches of similar length, float32."""

    def __init__(self, directory: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).eval()
        self.device = device

    def prompt(self, document: Document) -> str:
        """The text before the last answer, rendered by the chat template."""
        text = self.tokenizer.apply_chat_template(
            document.messages[:-1], tools=document.tools or None, enable_thinking=document.thinking,
            add_generation_prompt=True, tokenize=False,
        )  # fmt: skip
        expected = "".join(piece for piece, _ in segments(document)[:-2])
        assert document.thinking or text == expected, (
            f"template differs from training text:\n{text}\n---\n{expected}"
        )
        return str(text)

    @torch.inference_mode()
    def answer(self, documents: list[Document], *, max_new_tokens: int, batch_size: int = 50) -> list[str]:
        """One answer per document, in order."""
        prompts = [self.tokenizer(self.prompt(document)).input_ids for document in documents]
        answers = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(len(prompts[i]) for i in chosen)
            ids = torch.zeros(len(chosen), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(chosen):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            out = self.model.generate(
                ids.to(self.device), attention_mask=mask.to(self.device), max_new_tokens=max_new_tokens,
                do_sample=False, temperature=None,
            )  # fmt: skip
            for row, i in enumerate(chosen):
                text = self.tokenizer.decode(out[row, width:], skip_special_tokens=False)
                answers[i] = text.split("<|im_end|>")[0].split("<|endoftext|>")[0]
        return answers


def _families(seed: int, limit: int) -> Iterator[tuple[str, list[Document]]]:
    grouped: dict[str, list[Document]] = defaultdict(list)
    for document in evaluation_documents(seed):
        grouped[document.family].append(document)
    for family, documents in sorted(grouped.items()):
        yield family, documents[:limit] if limit else documents


def evaluate(directory: Path, *, seed: int, limit: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Score every family; keeps up to six wrong answers per family as examples."""
    import transformers

    answerer = Answerer(directory, device)
    families: dict[str, Any] = {}
    for family, documents in _families(seed, limit):
        answers = answerer.answer(documents, max_new_tokens=MAX_NEW_TOKENS.get(family, 120))
        pairs = list(zip(documents, answers, strict=True))
        wrong = [(d, a) for d, a in pairs if not is_right(d, a)]
        score: dict[str, Any] = {"questions": len(pairs), "right": round(1 - len(wrong) / len(pairs), 4)}
        formed = [ok for ok in (is_well_formed(d, a) for d, a in pairs) if ok is not None]
        if formed and family in ("json", "tools"):
            score["well_formed"] = round(sum(formed) / len(formed), 4)
        score["exact"] = round(sum(a == d.messages[-1].get("content") for d, a in pairs) / len(pairs), 4)
        if family in ("tools",):
            del score["exact"]
        if family in GATES:
            # Of JSON and tool calls the form is promised; the content is measured beside it.
            reached = score.get("well_formed", score["right"])
            score |= {"gate": GATES[family], "passed": reached >= GATES[family]}
        score["wrong_examples"] = [
            {
                "asked": d.messages[-2]["content"],
                "wanted": d.messages[-1]["content"] or d.expect_calls,
                "said": a,
            }
            for d, a in wrong[:6]
        ]
        families[family] = score
    return {"seed": seed, "transformers": transformers.__version__, "families": families}


def write_report(report: dict[str, Any], path: Path | None) -> None:
    """Print the table; write the JSON where asked."""
    for family, score in report["evaluation"]["families"].items():
        gate = (
            f"gate {score['gate']:.0%} {'passed' if score['passed'] else 'FAILED'}" if "gate" in score else ""
        )
        formed = f"well-formed {score['well_formed']:.1%}" if "well_formed" in score else ""
        print(
            f"{family:14} {score['questions']:5} questions  right {score['right']:.1%}  {gate} {formed}",
            flush=True,
        )
        for wrong in score["wrong_examples"][:3]:
            print(
                f"      {wrong['asked']!r} -> {wrong['said'][:120]!r} (wanted {str(wrong['wanted'])[:100]!r})"
            )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
