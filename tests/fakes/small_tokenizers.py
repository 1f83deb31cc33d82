"""Small real tokenizers of every decoding family, built in memory (no files, no network)."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from xllm.text.tokenizer import Tokenizer

CORPUS = (
    "The capital of France is Paris. The capital of Japan is Tokyo.",
    "Hello world, hello there! 1 + 2 = 3.  Two  spaces.\nA new line.\tA tab.",
    "Grüße aus Köln, señor. Привет мир. 你好世界，日本語もあります。 안녕하세요",
    "emoji 😀 👩‍👩‍👧‍👦 🇫🇷 é é end",
)


def _byte_vocab() -> dict[str, int]:
    return {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}


def build_byte_level(vocab_size: int = 400) -> tokenizers.Tokenizer:
    """Qwen/Llama-3 style: byte-level BPE with chat special tokens and one added token that is not special."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    library.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    library.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return library


def build_llama2(strip: bool = True) -> tokenizers.Tokenizer:
    """Llama-2 style BPE: SentencePiece spaces, byte fallback, BOS from the post-processor; Gemma when not strip."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=160, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"]
    )
    trained.train_from_iterator(CORPUS[:2], trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **_byte_vocab()}
    for token in sorted(model["vocab"], key=model["vocab"].get):
        vocab.setdefault(token, len(vocab))
    merges = [tuple(merge) for merge in model["merges"]]
    library = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    library.normalizer = normalizer
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*chain, decoders.Strip(" ", 1, 0)] if strip else chain)
    library.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return library


def build_unigram() -> tokenizers.Tokenizer:
    """T5/ALBERT style: unigram with Metaspace, no bytes (the WINDOW kind)."""
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


def build_wordpiece() -> tokenizers.Tokenizer:
    """BERT style: '##' continuations and spaces that depend on the neighbours (the WINDOW kind)."""
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[CLS]"], show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


BUILDERS = {
    "byte_level": build_byte_level,
    "llama2": build_llama2,
    "gemma": functools.partial(build_llama2, strip=False),
    "unigram": build_unigram,
    "wordpiece": build_wordpiece,
}


@functools.cache
def small_tokenizer(name: str) -> Tokenizer:
    """One of BUILDERS as an xLLM tokenizer; cached, so treat it as read-only."""
    special = {
        "byte_level": ("<|im_start|>", "<|im_end|>"),
        "llama2": ("<s>", "</s>"),
        "gemma": ("<s>", "</s>"),
    }
    bos, eos = special.get(name, (None, None))
    return Tokenizer(BUILDERS[name](), {"bos_token": bos, "eos_token": eos})


def write_tokenizer_dir(folder: Path, name: str = "byte_level", **config: object) -> Path:
    """Write tokenizer.json and tokenizer_config.json as a model directory has them."""
    folder.mkdir(parents=True, exist_ok=True)
    library = BUILDERS[name]()
    library.save(str(folder / "tokenizer.json"))
    defaults = {
        "byte_level": {"eos_token": "<|im_end|>"},
        "llama2": {"bos_token": "<s>", "eos_token": "</s>"},
    }
    body = {"tokenizer_class": "PreTrainedTokenizerFast", **defaults.get(name, {}), **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(body), encoding="utf-8")
    return folder
