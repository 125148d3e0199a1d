import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.datasets import render, sample_scene
from captum_mllm.metrics import attention_knockout, earlier_tokens
from captum_mllm.models.knockout import hidden_words
from captum_mllm.models.query import Query
from captum_mllm.models.towers import decoder_layers

NAMES = ("demo/qwen2-vl", "demo/llava-1.5", "demo/internvl")
Setting = tuple[MLLM, Tensor, Query, Tensor]


@pytest.fixture(scope="module", params=NAMES)
def setting(request: pytest.FixtureRequest) -> Setting:
    mllm = MLLM.from_pretrained(request.param)
    picture = render(sample_scene(np.random.default_rng(3))).image
    inp = ImageTextInput(Image.fromarray(picture), "Describe the image.")
    image, query = mllm.prepare(inp, target="there is a red circle and a blue star .")
    return mllm, image, query, mllm.word_embeddings(query, answer=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_nothing_depends_on_a_hidden_word(setting: Setting, implementation: str) -> None:
    mllm, image, query, embeddings = setting
    before = mllm.model.config._attn_implementation
    mllm.model.set_attn_implementation(implementation)
    try:
        place = embeddings.shape[1] - 3
        hidden = torch.zeros(2, embeddings.shape[1], dtype=torch.bool)
        hidden[0, place] = True
        changed = embeddings.clone()
        changed[0, place] += 1.0
        given = torch.cat([embeddings, embeddings]), torch.cat([changed, changed])
        images = image.expand(2, -1, -1, -1)
        with torch.no_grad(), hidden_words(mllm, image, query)(hidden):
            plain, other = (mllm(images, each, query) for each in given)
        with torch.no_grad():
            whole = mllm(image, embeddings, query)
    finally:
        mllm.model.set_attn_implementation(before)
    # The row of the hidden word itself is not one of those behind it.
    rows = [t for t in range(plain.shape[1]) if t != plain.shape[1] - 3]
    torch.testing.assert_close(plain[0, rows], other[0, rows], atol=1e-4, rtol=1e-4)
    # Without the switch the same change is seen, and with an empty mask nothing is hidden.
    assert (plain[1, -1] - other[1, -1]).abs().max() > 1e-3
    torch.testing.assert_close(plain[1:], whole, atol=1e-4, rtol=1e-4)
    assert (plain[0, -1] - whole[0, -1]).abs().max() > 1e-4


def test_knockout_equals_a_pass_for_each_word(setting: Setting) -> None:
    mllm, image, query, embeddings = setting
    hide = hidden_words(mllm, image, query)
    found = attention_knockout(
        mllm,
        (image, embeddings),
        hide,
        additional_forward_args=(query,),
        target=query.answer_ids,
        perturbations_per_eval=5,
    )
    ids = torch.tensor(query.answer_ids)
    rows = torch.arange(len(ids))

    def scores() -> Tensor:
        return mllm(image, embeddings, query).log_softmax(-1)[0, rows, ids]

    valid = earlier_tokens(len(ids), embeddings.shape[1])
    with torch.no_grad():
        whole = scores()
        for place in (0, 2, embeddings.shape[1] - 1):
            hidden = torch.zeros(1, embeddings.shape[1], dtype=torch.bool)
            hidden[0, place] = True
            with hide(hidden):
                expected = (whole - scores()).masked_fill(~valid[:, place], 0)
            torch.testing.assert_close(found[:, place], expected, atol=1e-4, rtol=1e-3)
    assert found.abs().max() > 0.1


def test_the_model_is_as_before(setting: Setting) -> None:
    mllm, image, query, embeddings = setting
    hide = hidden_words(mllm, image, query)
    with pytest.raises(ValueError, match="rows of"), hide(torch.zeros(3, embeddings.shape[1]) > 1):
        mllm(image, embeddings, query)
    assert all(not layer._forward_pre_hooks for layer in decoder_layers(mllm.model))


def test_what_cannot_be_hidden_is_refused(setting: Setting) -> None:
    mllm, image, query, embeddings = setting
    hide = hidden_words(mllm, image, query)
    with pytest.raises(ValueError, match="one value for each word"), hide(torch.zeros(1, 2) > 1):
        pass
    layer = decoder_layers(mllm.model)[0]
    nothing = torch.zeros(1, embeddings.shape[1], dtype=torch.bool)

    def two_dimensional(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        return args, {**kwargs, "attention_mask": torch.ones(1, 4)}

    handle = layer.register_forward_pre_hook(two_dimensional, with_kwargs=True)
    try:
        with pytest.raises(ValueError, match="leave_one_out"), hide(nothing):
            mllm(image, embeddings, query)
    finally:
        handle.remove()
    config = mllm.model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation_internal = "flash_attention_2"
    try:
        with pytest.raises(ValueError, match="sdpa"):
            hidden_words(mllm, image, query)
    finally:
        config._attn_implementation_internal = before
