# What type checkers see; the names are imported lazily at run time.
from xllm.errors import XllmError as XllmError
from xllm.llm import LLM as LLM
from xllm.llm import CompletionOutput as CompletionOutput
from xllm.llm import Logprob as Logprob
from xllm.llm import RequestOutput as RequestOutput
from xllm.types.sampling import SamplingParams as SamplingParams

__version__: str
