"""demo/smolvlm, where its language model is installed: right answers, and explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging

from captum_mllm import ARC, MLLM, MSEA, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.demo import ADAPTED_MODELS, DEMO_PROMPTS, demo_folder, demo_image
from captum_mllm.demo.language_model import ADAPTER_FILE, find_language_model, load_language_model
from captum_mllm.demo.training.evaluate import evaluation_scenes
from captum_mllm.demo.training.smolvlm.evaluate import evaluate


def is_installed() -> bool:
    try:
        find_language_model()
    except (FileNotFoundError, ImportError):
        return False
    return True


needs_language_model = pytest.mark.skipif(
    not is_installed(), reason="the language model of demo/smolvlm is not installed"
)


def test_each_adapter_is_complete_and_at_most_10_megabytes() -> None:
    for name in ADAPTED_MODELS:
        files = {path.name: path.stat().st_size for path in demo_folder(name).iterdir()}
        assert {"README.md", "config.json", "generation_config.json", ADAPTER_FILE} <= set(files)
        assert sum(files.values()) <= 10_000_000


@pytest.fixture(scope="module")
def mllm() -> MLLM:
    return MLLM.from_pretrained("demo/smolvlm")


@needs_language_model
@pytest.mark.slow
def test_no_bar_is_shown_where_bars_are_off(capsys: pytest.CaptureFixture[str]) -> None:
    logging.disable_progress_bar()
    try:
        load_language_model()
        assert capsys.readouterr().err == ""
    finally:
        logging.enable_progress_bar()
    load_language_model()
    assert "100%" in capsys.readouterr().err


@needs_language_model
@pytest.mark.slow
def test_fresh_scenes_are_captioned_and_questions_answered(mllm: MLLM) -> None:
    counts: Any = evaluate(mllm.model, mllm.processor, evaluation_scenes(20, seed=7))
    for style in DEMO_PROMPTS:
        assert np.mean(counts[style, "shape"]) >= 0.9
        assert np.mean(counts[style, "color"]) >= 0.9
    assert np.mean([np.mean(counts[name, "first"]) for name in ("Yes", "No")]) >= 0.8


@needs_language_model
@pytest.mark.slow
def test_the_bundled_image_is_explained_in_whole_words(mllm: MLLM) -> None:
    inp = ImageTextInput(Image.open(demo_image()), DEMO_PROMPTS["caption"])
    result = MLLMAttribution(ARC(MSEA(LogitLens(mllm)))).attribute(inp)
    answer = "".join(result.output_tokens)
    assert "star" in answer
    assert answer.strip()[0].isupper()
    heat = result.map("star")
    assert np.isfinite(heat).all()
    assert heat.max() > 0
