"""TextPipeline: all that the edge needs to turn text into ids of the served model and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm.config.model_spec import GenerationDefaults, read_generation_defaults, read_model_spec
from xllm.errors import ConfigError, InvalidRequest
from xllm.text.chat_template import ChatTemplate
from xllm.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPipeline:
    """Tokenizer, template and the model's own defaults; immutable, shared by every request."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None: the model is not a chat model; chat requests get a 400."""
    eos_token_ids: tuple[int, ...] = ()
    """Ids that end a choice, from config.json, generation_config.json and the tokenizer."""
    defaults: GenerationDefaults = GenerationDefaults()
    """Sampling values for requests that give none."""

    @classmethod
    def from_dir(
        cls,
        model_dir: str | Path,
        *,
        tokenizer_dir: str | Path | None = None,
        chat_template: str | None = None,
        generation_config: str = "auto",
    ) -> TextPipeline:
        """Read a model directory; the options are those of :class:`xllm.config.model.ModelConfig`.

        Raises:
            ModelError: a file is missing or damaged.
            ConfigError: ``generation_config`` names no directory with such a file.
        """
        tokenizer = Tokenizer.from_dir(tokenizer_dir or model_dir)
        template = ChatTemplate.try_from_dir(
            tokenizer_dir or model_dir, tokenizer.special_tokens, override=chat_template
        )
        own = read_generation_defaults(model_dir)
        if generation_config == "auto":
            defaults = own
        elif generation_config == "vllm":
            defaults = GenerationDefaults()
        else:
            folder = Path(generation_config)
            if not (folder / "generation_config.json").is_file():
                raise ConfigError(
                    f"--generation-config {generation_config}: no generation_config.json there",
                    hint="use auto, vllm, or a directory that holds one",
                )
            defaults = read_generation_defaults(folder)
        ids = (*read_model_spec(model_dir).eos_token_ids, *own.eos_token_ids, *defaults.eos_token_ids)
        named = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        eos = tuple(dict.fromkeys((*named, *ids)))
        return cls(tokenizer=tokenizer, template=template, eos_token_ids=eos, defaults=defaults)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a conversation.

        Raises:
            InvalidRequest: the model has no chat template, or the template refuses the messages.
        """
        if self.template is None:
            raise InvalidRequest(
                "the model has no chat template", hint="use /v1/completions or start with --chat-template"
            )
        return self.template.render(
            messages,
            tools,
            documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )

    def template_reads(self, name: str) -> bool:
        """Whether the chat template mentions a variable at all."""
        return self.template is not None and any(name in text for text in self.template.sources.values())
