r"""The architectures that can be trained, by name."""

from __future__ import annotations

from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.internvl import InternVL
from captum_mllm.demo.training.llava import Llava
from captum_mllm.demo.training.qwen2_vl import Qwen2VL

#: One row of facts for each.
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (Qwen2VL(), Llava(), InternVL())
}
