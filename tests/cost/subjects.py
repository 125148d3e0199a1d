"""What is measured: models of real width with random weights, and inputs of a given length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.demo import DEMO_PROMPT
from captum_mllm.models.families import placeholder_ids
from captum_mllm.models.loading import image_only
from captum_mllm.models.query import Query
from tests.models import tiny_models

# No limit on the number of pixels shall change the number of image tokens.
LARGEST_AREA = 2**30
# Layers of the language model and of the vision tower where no GPU is at hand.
LAYERS_ON_CPU = 2


@dataclass(frozen=True)
class Shape:
    r"""The sizes of a Qwen2-VL; the vision tower is the same for all of them.

    Args:
        hidden_size (int): width of the language model.
        intermediate_size (int): width of its MLPs.
        layers (int): its layers.
        heads (int): its attention heads.
        key_value_heads (int): heads of its keys and values.
        vocabulary (int): size of its vocabulary.
        tied (bool): whether input and output embedding are one.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool


# From the configurations of Qwen/Qwen2-VL-2B-Instruct, Qwen/Qwen2-VL-7B-Instruct and the language
# model of Qwen/Qwen3-VL-8B-Instruct, behind the same tower.
SHAPES = {
    "2b": Shape(1536, 8960, 28, 12, 2, 151_936, True),
    "7b": Shape(3584, 18944, 28, 28, 4, 152_064, False),
    "8b": Shape(4096, 12288, 36, 32, 8, 151_936, False),
}
VISION = dict(depth=32, embed_dim=1280, num_heads=16, mlp_ratio=4, patch_size=14)


@dataclass(frozen=True)
class Subject:
    r"""A model, an image of a given number of image tokens and an answer of a given length.

    Args:
        mllm (MLLM): the model.
        inp (ImageTextInput): the image and the question.
        image (Tensor): the image as a tensor.
        query (Query): the question and the answer.
    """

    mllm: MLLM
    inp: ImageTextInput
    image: Tensor
    query: Query


def load_model(
    shape: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
) -> MLLM:
    r"""A model of one of the shapes.

    Args:
        shape (str): ``"tiny"``, the bundled model as it was trained, or one of ``SHAPES`` with
            random weights.
        device (str): where it runs.
        dtype (torch.dtype): of its weights.
        layers (int, optional): layers of the language model and at most of the vision tower.
            Default: None, all on a GPU and two on the CPU; the bundled model always has all.

    Returns:
        MLLM: in evaluation mode.

    Raises:
        ValueError: for an unknown shape.
    """
    if shape == "tiny":
        mllm = MLLM.from_pretrained("demo/qwen2-vl", dtype=dtype)
        model: Any = mllm.model
        model.to(device)
        mllm.processor.image_processor.size["longest_edge"] = LARGEST_AREA
        return mllm
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r}, expected 'tiny' or one of {', '.join(SHAPES)}")
    if layers is None and torch.device(device).type == "cpu":
        layers = LAYERS_ON_CPU
    return random_model(SHAPES[shape], device, dtype, layers)


def random_model(
    shape: Shape,
    device: str,
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
) -> MLLM:
    r"""A model with random weights, the same at every call, made where it runs."""
    return MLLM(random_network(shape, device, dtype, layers), _processor())


def random_network(
    shape: Shape,
    device: str,
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
) -> transformers.PreTrainedModel:
    r"""The network of :func:`random_model`; on the device "meta" it has shapes alone."""
    config = _config(shape, _processor().tokenizer, layers)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.eval()


def make_subject(mllm: MLLM, image_tokens: int, answer_tokens: int) -> Subject:
    r"""An image of noise and an answer of random words, always the same.

    Args:
        mllm (MLLM): the model.
        image_tokens (int): number of image tokens at scale 1, a square.
        answer_tokens (int): number of tokens of the answer.

    Raises:
        ValueError: if the image tokens do not make a square.
    """
    side = round(image_tokens**0.5)
    if side * side != image_tokens:
        raise ValueError(f"{image_tokens} image tokens do not make a square; give 256, 1024 ...")
    vision = mllm.model.config.vision_config
    pixels = side * vision.patch_size * vision.spatial_merge_size
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8))
    inp = ImageTextInput(picture, DEMO_PROMPT)
    tokenizer = mllm.tokenizer
    # Not every tokenizer counts the placeholder among its special tokens.
    no_words = [*tokenizer.all_special_ids, *placeholder_ids(mllm.model.config)]
    words = np.setdiff1d(np.arange(len(tokenizer)), no_words)
    image, query = mllm.prepare(inp, target=random.choice(words, answer_tokens).tolist())
    found = mllm.layouts(image, query)[0].n_tokens
    assert found == image_tokens, f"the image has {found} image tokens"
    return Subject(mllm, inp, image, query)


def several_inputs(subject: Subject, count: int) -> list[ImageTextInput]:
    r"""Images of noise as large as the subject's, each with a question of its own length."""
    random = np.random.default_rng(1)
    shape = np.asarray(subject.inp.images[0]).shape[1:]
    images = [
        Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for _ in range(count)
    ]
    return [
        ImageTextInput(picture, " ".join([DEMO_PROMPT] * (1 + index % 3)))
        for index, picture in enumerate(images)
    ]


def _processor() -> Any:
    tokenizer = tiny_models.tokenizer(special=tiny_models.QWEN_SPECIAL)
    return image_only(transformers.Qwen2VLProcessor)(
        image_processor=transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": 28 * 28, "longest_edge": LARGEST_AREA}
        ),
        tokenizer=tokenizer,
        chat_template=tiny_models.chat_template(tiny_models.QWEN_IMAGE),
    )


def _config(shape: Shape, tokenizer: Any, layers: int | None) -> transformers.Qwen2VLConfig:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    special = tokenizer.convert_tokens_to_ids(list(tiny_models.QWEN_SPECIAL))
    return transformers.Qwen2VLConfig(
        text_config=dict(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=layers or shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            rope_parameters={
                "rope_type": "default",
                "mrope_section": [16, 24, 24],
                "rope_theta": 1e6,
            },
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=shape.tied,
        ),
        vision_config={
            **VISION,
            "depth": min(layers or VISION["depth"], VISION["depth"]),
            "hidden_size": shape.hidden_size,
        },
        tie_word_embeddings=shape.tied,
        **dict(zip(names, special)),
    )
