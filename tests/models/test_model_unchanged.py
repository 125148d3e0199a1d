"""Whatever is done, and however it fails, the user's model is afterwards as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query
from tests.models.tiny_models import FAMILIES, build

IMAGE = torch.rand(3, 84, 112, generator=torch.Generator().manual_seed(0))
INPUT = ImageTextInput(IMAGE, "what is in the image ?")


def state_of(value: Any) -> Any:
    """What can be compared of an attribute: values where it has some, else which object it is."""
    if isinstance(value, Tensor):
        return id(value), value._version, value.tolist()
    if isinstance(value, (dict, list, tuple, set)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return type(value), [(key, state_of(item)) for key, item in items]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return id(value)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, the parameters by identity and version."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name != "_parameters":
                found[f"{path}.{name}"] = state_of(value)
    for name, parameter in model.named_parameters():
        found[name] = (id(parameter), parameter._version, parameter.requires_grad, parameter.grad)
    for config in (model.config, model.generation_config):
        found[type(config).__name__] = config.to_json_string()
    for name in ("text_config", "vision_config"):
        found[name] = getattr(model.config, name)._attn_implementation
    return found


def used(family: str) -> tuple[MLLM, Tensor, Query]:
    """A model of mixed training flags that has run before: transformers sets it up at first."""
    model, processor = build(family)
    mllm = MLLM(model, processor)
    image, query = mllm.prepare(INPUT, target="a cat")
    model(**mllm.encode((image,), query).inputs)
    model.generate(**mllm.encode((image,), query).inputs, max_new_tokens=2)
    model.train()
    model.get_decoder().layers[0].eval()
    next(model.parameters()).requires_grad_(False)
    return mllm, image, query


def calls(mllm: MLLM, image: Tensor, query: Query) -> dict[str, Callable[[], Any]]:
    larger = torch.nn.functional.interpolate(image, scale_factor=1.5)
    ids = mllm.encode((image,), query).inputs
    method = IntegratedGradients(mllm)
    return {
        "forward": lambda: mllm(image, query),
        "forward at another scale": lambda: mllm(larger, query),
        "states": lambda: mllm.states(image, query),
        "states of a layer": lambda: mllm.states(larger, query, layer=0),
        "gradients": lambda: method.attribute(
            image, target=(0, 5), n_steps=2, additional_forward_args=(query,)
        ),
        "generation": lambda: mllm.prepare(INPUT, max_new_tokens=3, suppress_tokens=[7]),
        "probability": lambda: mllm.target_probability(image, query),
        "language model": lambda: mllm.as_language_model(IMAGE)(ids["input_ids"], use_cache=True),
        "generation of the language model": lambda: mllm.as_language_model(IMAGE).generate(
            ids["input_ids"], max_new_tokens=3
        ),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_works_changes_the_model(family: str) -> None:
    mllm, image, query = used(family)
    before = snapshot(mllm.model)
    for name, call in calls(mllm, image, query).items():
        call()
        assert snapshot(mllm.model) == before, name


@pytest.mark.parametrize("place", ["first layer", "last layer", "norm", "vision tower"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_that_breaks_off_changes_nothing(family: str, place: str) -> None:
    mllm, image, query = used(family)
    decoder = mllm.model.get_decoder()
    module = {
        "first layer": decoder.layers[0],
        "last layer": decoder.layers[-1],
        "norm": decoder.norm,
        "vision tower": mllm.model.get_encoder(modality="image"),
    }[place]

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    handle = module.register_forward_hook(fail)
    before = snapshot(mllm.model)
    for name, call in calls(mllm, image, query).items():
        with pytest.raises(RuntimeError, match="on purpose"):
            call()
        assert snapshot(mllm.model) == before, name
    handle.remove()


def bad_inputs(mllm: MLLM, image: Tensor, query: Query) -> dict[str, Callable[[], Any]]:
    history = [{"role": "user", "content": "no image part"}]
    return {
        "no query": lambda: mllm(image),
        "the query first": lambda: mllm(query, image),
        "two images for one": lambda: mllm(image, image, query),
        "image without a batch": lambda: mllm(image[0], query),
        "8-bit levels": lambda: mllm(image * 255, query),
        "NaN": lambda: mllm(image * torch.nan, query),
        "integers": lambda: mllm(image.to(torch.uint8), query),
        "too small": lambda: mllm(image[..., :1, :1], query),
        "a missing layer": lambda: mllm.states(image, query, layer=9),
        "half a layer": lambda: mllm.states(image, query, layer=0.5),
        "target too late": lambda: mllm.target_probability(image, query, target=(9, 5)),
        "target of no token": lambda: mllm.target_probability(image, query, target=(0, 10**6)),
        "empty answer": lambda: mllm.prepare(INPUT, target=""),
        "answer of a placeholder": lambda: mllm.prepare(INPUT, target=[mllm.image_token_id]),
        "answer of truth values": lambda: mllm.prepare(INPUT, target=[True]),
        "several answers": lambda: mllm.prepare(INPUT, num_return_sequences=2, num_beams=2),
        "unknown option of generate": lambda: mllm.prepare(INPUT, no_such_option=1),
        "no new tokens": lambda: mllm.prepare(INPUT, max_new_tokens=0),
        "messages without an image": lambda: mllm.prepare(ImageTextInput(IMAGE, messages=history)),
        "text with a placeholder": lambda: mllm.prepare(
            ImageTextInput(IMAGE, f"what is {mllm.processor.image_token} ?")
        ),
        "ids without an image": lambda: mllm.as_language_model()(
            mllm.encode((image,), query).inputs["input_ids"]
        ),
        "expanding two placeholders": lambda: mllm.as_language_model(IMAGE).expand("none"),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_input_is_refused_and_changes_nothing(family: str) -> None:
    mllm, image, query = used(family)
    before = snapshot(mllm.model)
    for name, call in bad_inputs(mllm, image, query).items():
        with pytest.raises((TypeError, ValueError)):
            call()
        assert snapshot(mllm.model) == before, name
        assert not image.requires_grad


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_an_explanation_amid_the_users_own_decoding_does_not_disturb_it(family: str) -> None:
    mllm, image, query = used(family)
    mllm.model.eval()
    inputs = mllm.encode((image,), query).inputs
    other = ImageTextInput(torch.rand(3, 280, 56, generator=torch.Generator().manual_seed(1)), "?")

    @torch.no_grad()
    def decode(explain: bool) -> Tensor:
        start = mllm.model(**inputs, use_cache=True)
        if explain:
            mllm.states(*mllm.prepare(other, max_new_tokens=3, min_new_tokens=3))
        return mllm.model(
            input_ids=torch.tensor([[70]]), past_key_values=start.past_key_values, use_cache=True
        ).logits

    assert torch.equal(decode(explain=True), decode(explain=False))
