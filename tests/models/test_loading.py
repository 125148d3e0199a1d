from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import is_torchvision_available

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.demo import demo_folder
from captum_mllm.models import image_only, load_processor
from tests.models.tiny_families import shared
from tests.models.tiny_models import FAMILIES, build, save, tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_processor_loads_with_what_it_had(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    processor = load_processor(tmp_path)
    assert processor.chat_template
    assert processor.image_token
    assert (tmp_path / "processor_config.json").read_text().count("ImageOnly") == 0


def test_a_processor_without_a_video_slot_stays_as_it_is() -> None:
    assert image_only(transformers.LlavaProcessor) is transformers.LlavaProcessor


def test_the_video_slot_goes_and_the_name_stays() -> None:
    reduced = image_only(transformers.Qwen2VLProcessor)
    assert reduced.get_attributes() == ["image_processor", "tokenizer"]
    assert reduced.__name__ == "Qwen2VLProcessor"
    assert "video_processor" in transformers.Qwen2VLProcessor.get_attributes()


@pytest.mark.parametrize("family", ["llava_next_video", "minicpmv4_6"])
def test_a_video_slot_that_comes_first_goes_too(family: str, tmp_path: Path) -> None:
    _, processor = shared(family)
    processor.save_pretrained(tmp_path)
    loaded = image_only(type(processor)).from_pretrained(tmp_path)
    assert isinstance(loaded.tokenizer, type(processor.tokenizer))
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()


def test_a_tokenizer_alone_is_refused(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    transformers.LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a processor of images and text"):
        load_processor(tmp_path)


def test_where_files_come_from_is_told_to_the_processor_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = {
        "revision": "main",
        "token": "secret",
        "cache_dir": str(tmp_path / "cache"),
        "local_files_only": True,
        "force_download": False,
        "trust_remote_code": False,
        "subfolder": "",
        "proxies": None,
    }
    seen: dict[str, Any] = {}

    def load(name: Path, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return load_processor(name, **kwargs)

    monkeypatch.setattr("captum_mllm.models.loading.load_processor", load)
    folder = save("llava", tmp_path)
    mllm = MLLM.from_pretrained(folder, dtype="float64", **access)
    assert mllm.dtype == torch.float64
    assert seen == access


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_processor_lies_where_its_model_lies(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "inner")
    mllm = MLLM.from_pretrained(tmp_path, subfolder="inner")
    assert mllm.processor.chat_template


@pytest.mark.parametrize("name", ["qwen2-vl", "internvl", "llava-1.5"])
def test_the_bundled_processors_load_with_torchvision_and_without(name: str) -> None:
    processor: Any = load_processor(demo_folder(name))
    assert processor.image_processor is not None
    assert not hasattr(processor, "video_processor")


@pytest.mark.skipif(not is_torchvision_available(), reason="a video processor needs torchvision")
def test_a_video_processor_that_is_there_is_kept(tmp_path: Path) -> None:
    processor = build("qwen2_vl")[1]
    whole = transformers.Qwen2VLProcessor(
        processor.image_processor,
        processor.tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=processor.chat_template,
    )
    whole.save_pretrained(tmp_path)
    assert load_processor(tmp_path).video_processor is not None


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_model_with_its_processor_goes_through_pickle(family: str) -> None:
    mllm = MLLM(*build(family))
    image, query = mllm.prepare(
        ImageTextInput(torch.rand(3, 56, 56), "what is in the image ?"), target="a cat"
    )
    for other in (pickle.loads(pickle.dumps(mllm)), copy.deepcopy(mllm)):
        assert other.backbone.model is other.model
        assert torch.equal(other(image, query), mllm(image, query))


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision builds the video half")
def test_without_torchvision_the_whole_processor_cannot_be_built(tmp_path: Path) -> None:
    save("qwen2_vl", tmp_path)
    with pytest.raises((ImportError, OSError, ValueError)):
        transformers.AutoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "models/tuned/absent"])
def test_a_folder_that_is_not_there_is_said_to_be(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        MLLM.from_pretrained(name)
