r"""Methods measured against controls on scenes whose truth is known: ``captum-mllm benchmark``."""

from captum_mllm.benchmark.catalogue import METHODS, select_methods
from captum_mllm.benchmark.examples import Example, sample_examples
from captum_mllm.benchmark.method import Method
from captum_mllm.benchmark.report import to_markdown
from captum_mllm.benchmark.runner import run_benchmark
from captum_mllm.benchmark.settings import Settings
from captum_mllm.benchmark.summary import Summary, summarize

__all__ = [
    "METHODS",
    "Example",
    "Method",
    "Settings",
    "Summary",
    "run_benchmark",
    "sample_examples",
    "select_methods",
    "summarize",
    "to_markdown",
]
