"""Files bundled with the package.

demo_model/   the demo model: a Hugging Face directory, trained by recipes/train_demo_model.py
"""

from __future__ import annotations

from pathlib import Path


def demo_model_path() -> Path:
    """The directory of the bundled demo model (config.json, weights, tokenizer, chat template)."""
    return Path(__file__).resolve().parent / "demo_model"
