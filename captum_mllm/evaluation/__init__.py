r"""Methods measured against controls, on scenes whose truth is known and on data sets."""

from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.data_run import run_data
from captum_mllm.evaluation.examples import Example, SceneExample, sample_examples
from captum_mllm.evaluation.method import Method
from captum_mllm.evaluation.report import to_markdown
from captum_mllm.evaluation.run import run_benchmark
from captum_mllm.evaluation.settings import DataSettings, Settings
from captum_mllm.evaluation.summary import Summary, summarize

__all__ = [
    "METHODS",
    "DataSettings",
    "Example",
    "Method",
    "SceneExample",
    "Settings",
    "Summary",
    "run_benchmark",
    "run_data",
    "sample_examples",
    "select_methods",
    "summarize",
    "to_markdown",
]
