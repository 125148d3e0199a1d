"""What is given to MLLM is checked where it is given."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models.pairing import complete_processor
from tests.models.test_model_unchanged import snapshot
from tests.models.tiny_models import FAMILIES, build, llava, shared

IMAGE = torch.rand(3, 84, 112, generator=torch.Generator().manual_seed(0))
INPUT = ImageTextInput(IMAGE, "what is in the image ?")


def logits(mllm: MLLM) -> torch.Tensor:
    with torch.no_grad():
        return mllm(*mllm.prepare(INPUT, target="a cat"))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: nn.DataParallel(model)])
def test_a_model_is_taken_out_of_data_parallel(wrap: Callable[[Any], Any]) -> None:
    model, processor = build("llava")
    mllm = MLLM(wrap(model), processor)
    assert mllm.model is model
    assert torch.equal(logits(mllm), logits(MLLM(*shared("llava"))))


def with_adapter(model: Any, **settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(model, config)


@pytest.mark.parametrize("parallel", [False, True])
def test_an_adapter_is_explained_without_merging(parallel: bool) -> None:
    model, processor = build("qwen2_vl")
    tuned = with_adapter(model, init_lora_weights=False)
    mllm = MLLM(nn.DataParallel(tuned) if parallel else tuned, processor)
    inputs = mllm.encode(*([mllm.prepare(INPUT, "a cat")[0]], mllm.prepare(INPUT, "a cat")[1]))
    with torch.no_grad():
        expected = tuned(**inputs.inputs).logits[:, inputs.answer_rows]
        merged = MLLM(tuned.merge_and_unload(), processor)
    found = logits(mllm)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-3, atol=1e-5)
    assert (logits(MLLM(*shared("qwen2_vl"))) - expected).abs().max() > 1e-3


def test_a_learned_prompt_is_refused() -> None:
    peft = pytest.importorskip("peft")
    model, processor = build("qwen2_vl")
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=32, num_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    tuned = peft.PeftModel(model, config)
    with pytest.raises(ValueError, match="a PeftModel that learns a prompt"):
        MLLM(tuned, processor)


def meta() -> Any:
    return build("llava")[0].to("meta")


MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "name": (lambda: "demo/qwen2-vl", TypeError, r"MLLM.from_pretrained\('demo/qwen2-vl'\) loads"),
    "path": (lambda: Path("folder"), TypeError, "got the name 'folder'"),
    "nothing": (lambda: None, TypeError, "a model of type NoneType"),
    "MLLM": (lambda: MLLM(*shared("llava")), TypeError, "type MLLM.*it can be used as it is"),
    "another network": (lambda: nn.Linear(2, 2), TypeError, "type Linear, expected a model of tr"),
    "class": (lambda: transformers.LlavaForConditionalGeneration, TypeError, "a model of type"),
    "without its head": (lambda: build("llava")[0].model, ValueError, "no output embedding"),
    "without weights": (meta, ValueError, "on the device 'meta'"),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_a_model_is_refused(name: str) -> None:
    make, error, message = MODELS[name]
    with pytest.raises(error, match=message):
        MLLM(make(), shared("llava")[1])


def other_patches() -> Any:
    processor = build("qwen2_vl")[1]
    processor.image_processor.patch_size = 16
    return processor


PROCESSORS: dict[str, tuple[str, Callable[[], Any], type[Exception], str]] = {
    "name": ("llava", lambda: "demo/llava", TypeError, r"type str.*load_processor\(name\)"),
    "nothing": ("llava", lambda: None, TypeError, "type NoneType"),
    "tokenizer": ("llava", lambda: shared("llava")[1].tokenizer, TypeError, "no image_processor"),
    "image processor": (
        "llava",
        lambda: shared("llava")[1].image_processor,
        TypeError,
        "no image_processor and no tokenizer",
    ),
    "LLaVA's for Qwen": ("qwen2_vl", lambda: shared("llava")[1], ValueError, "not that of this"),
    "Qwen's for LLaVA": ("llava", lambda: shared("qwen2_vl")[1], ValueError, "not that of this"),
    "InternVL's for LLaVA": ("llava", lambda: shared("internvl")[1], ValueError, "not that of"),
    "InternVL's for Qwen": ("qwen2_vl", lambda: shared("internvl")[1], ValueError, "not that of"),
    "Qwen's for InternVL": ("internvl", lambda: shared("qwen2_vl")[1], ValueError, "not that of"),
    "Qwen3's for Qwen2": (
        "qwen2_vl",
        lambda: shared("qwen3_vl")[1],
        ValueError,
        "patch_size=16, the model patch_size=14",
    ),
    "other patches": ("qwen2_vl", other_patches, ValueError, "patch_size=16"),
    "larger images": ("llava", lambda: llava(112)[1], ValueError, "112 x 112 pixels.* 84 x 84"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_processor_of_another_model_is_refused(name: str) -> None:
    family, make, error, message = PROCESSORS[name]
    with pytest.raises(error, match=message):
        MLLM(shared(family)[0], make())


def test_a_tokenizer_in_python_is_refused() -> None:
    model, processor = build("llava")
    slow = transformers.ByT5Tokenizer(extra_ids=0)
    slow.add_tokens(["<image>"], special_tokens=True)
    slow.image_token = "<image>"
    mllm = MLLM(model, processor)
    processor.tokenizer = slow
    for use in (lambda: MLLM(model, processor), lambda: mllm.prepare(INPUT, "a cat")):
        with pytest.raises(ValueError, match="ByT5Tokenizer, which does not tell where"):
            use()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("missing", [("patch_size",), ("num_additional_image_tokens",), ()])
def test_what_older_processors_of_llava_lack_is_completed(
    missing: tuple[str, ...], late: bool
) -> None:
    model, processor = build("llava")
    names = missing or (
        "patch_size",
        "num_additional_image_tokens",
        "vision_feature_select_strategy",
    )
    mllm = MLLM(model, processor) if late else None
    for name in names:
        setattr(processor, name, 0 if name.startswith("num") else None)
    found = logits(mllm or MLLM(model, processor))
    assert torch.equal(found, logits(MLLM(*shared("llava"))))
    # The user's own is left as it was.
    assert not any(getattr(processor, name) for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_complete_processor_is_not_copied(family: str) -> None:
    model, processor = shared(family)
    assert complete_processor(processor, model.config) is processor
    assert MLLM(model, processor).processor is processor


def test_more_tokens_than_embeddings_are_reported() -> None:
    model, processor = build("llava")
    processor.tokenizer.add_tokens(["more", "tokens"])
    size = model.get_input_embeddings().num_embeddings
    with pytest.warns(UserWarning, match=f"embeddings of {size} tokens alone"):
        MLLM(model, processor)


def demo(name: str) -> Callable[[], MLLM]:
    return lambda: MLLM.from_pretrained(f"demo/{name}")


def tiny(family: str) -> Callable[[], MLLM]:
    return lambda: MLLM(*build(family))


PICKLED = {
    **{family: tiny(family) for family in FAMILIES},
    **{f"demo/{name}": demo(name) for name in ("llava-1.5", "qwen2-vl", "internvl")},
}


@pytest.mark.parametrize("name", PICKLED)
@pytest.mark.parametrize("used", [False, True])
def test_it_is_pickled_copied_and_saved(name: str, used: bool) -> None:
    mllm = PICKLED[name]()
    expected = logits(mllm) if used else None
    before = snapshot(mllm.model)
    buffer = io.BytesIO()
    torch.save(mllm, buffer)
    buffer.seek(0)
    copies = [
        pickle.loads(pickle.dumps(mllm)),
        torch.load(buffer, weights_only=False),
        copy.deepcopy(mllm),
    ]
    assert snapshot(mllm.model) == before
    for same in copies:
        expected = logits(mllm) if expected is None else expected
        assert torch.equal(logits(same), expected)
        assert type(same.processor).__name__ == type(mllm.processor).__name__
        assert same.backbone.model is same.model is not mllm.model


def test_another_process_reads_it(tmp_path: Path) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    image, query = mllm.prepare(INPUT, target="a cat")
    (tmp_path / "mllm").write_bytes(pickle.dumps((mllm, image, query)))
    program = (
        "import pickle, sys; mllm, image, query = pickle.load(open(sys.argv[1], 'rb'));"
        "print(float(mllm(image, query).detach().double().sum()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "mllm")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(output.stdout) == pytest.approx(float(logits(mllm).double().sum()), rel=1e-5)
