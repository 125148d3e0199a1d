r"""Write a model: ``python -m captum_mllm.demo.training.smolvlm.export CHECKPOINT FOLDER``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from captum_mllm.demo.language_model import (
    ADAPTER_FILE,
    FACTORS,
    find_language_model,
    load_tokenizer,
)
from captum_mllm.demo.training.smolvlm.architecture import (
    IMAGE,
    LORA_SCALE,
    build_config,
    build_processor,
    with_image_token,
)

_MAX_NEW_TOKENS = 64


def shipped(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    r"""An adapter's weights in 16 bits, with the factor of the changes in their outer matrices."""
    outer = FACTORS[1]
    return {
        name: (value * LORA_SCALE if name.endswith(outer) else value).half().contiguous()
        for name, value in adapter.items()
        if not name.endswith("position_ids")
    }


def as_trained(adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    r"""The weights that :func:`shipped` was given, in float32."""
    outer = FACTORS[1]
    return {
        name: value.float() / LORA_SCALE if name.endswith(outer) else value.float()
        for name, value in adapter.items()
    }


def export(adapter: dict[str, Tensor], text_config: Any, tokenizer: Any, folder: Path) -> None:
    r"""Write a folder that :func:`~captum_mllm.demo.language_model.load_adapted` reads.

    Args:
        adapter (dict[str, Tensor]): The trained weights, as the training's checkpoints hold them.
        text_config (transformers.LlamaConfig): The language model's configuration.
        tokenizer (Any): Its tokenizer, with the image's placeholder.
        folder (Path): The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(shipped(adapter), folder / ADAPTER_FILE)
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config = build_config(text_config, image_token_id)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    transformers.GenerationConfig(
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        do_sample=False,
        max_new_tokens=_MAX_NEW_TOKENS,
    ).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def main(arguments: list[str] | None = None) -> None:
    r"""Export from the command line."""
    parser = argparse.ArgumentParser(description="Write the files of a model.")
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a run")
    parser.add_argument("folder", type=Path, help="where to write")
    options = parser.parse_args(arguments)
    text_config = transformers.AutoConfig.from_pretrained(**find_language_model().arguments())
    state = torch.load(options.checkpoint, weights_only=True)
    export(state["adapter"], text_config, with_image_token(load_tokenizer()), options.folder)


if __name__ == "__main__":
    main()
