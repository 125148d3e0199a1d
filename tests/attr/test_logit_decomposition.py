"""The logit decomposition: its parts, written out, and their sum, the logit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor, nn

from captum_mllm import ARC, MLLM, MSEA, TAM, ImageTextInput, LogitDecomposition, MLLMAttribution
from captum_mllm.attr.logit_decomposition import Decomposition
from captum_mllm.models.query import Query
from tests.attr.test_attention_maps import SIZES, noise, places, prepared, sharp, written_out
from tests.models import tiny_families, tiny_models
from tests.models.test_decoding import counted
from tests.models.test_model_unchanged import snapshot, used
from tests.models.tiny_models import shared

# Norms before the modules of a layer, and around them with a gain that is kept less 1.
WRITTEN_OUT = ["qwen2_vl", "qwen3_vl", "llava", "gemma3"]
# What a LLaVA may have for a language model: multipliers, norms of other kinds and in other
# places, parallel modules, biases.
LANGUAGE_MODELS: dict[str, Any] = {
    "granite": (T.GraniteConfig, dict(residual_multiplier=0.3, attention_multiplier=0.5)),
    "cohere": (T.CohereConfig, {}),
    "olmo2": (T.Olmo2Config, {}),
    "gemma2": (T.Gemma2Config, dict(head_dim=8, attn_logit_softcapping=2.0)),
    "stablelm": (T.StableLmConfig, dict(use_qkv_bias=True)),
    "biases": (T.LlamaConfig, dict(attention_bias=True, mlp_bias=True)),
}


def ask(mllm: MLLM, query: Query, image: Tensor, **target: Any) -> Decomposition:
    return LogitDecomposition(mllm).decompose(image, additional_forward_args=(query,), **target)


def own_logits(mllm: MLLM, image: Tensor, query: Query) -> Tensor:
    """Those of the model's own forward pass."""
    ids = mllm.explained_ids(image, query)
    logits = mllm(image, query)[0].detach()
    return logits[torch.arange(len(ids)), ids]


def check_sum(mllm: MLLM, image: Tensor, query: Query) -> Decomposition:
    parts = ask(mllm, query, image)
    summands = [*(part.sum(1) for part in parts.image), parts.text.sum(1), *parts[3:]]
    expected = own_logits(mllm, image, query)
    torch.testing.assert_close(torch.stack(summands).sum(0), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.logit, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.total(), parts.logit, rtol=1e-4, atol=1e-5)
    return parts


def unevenly(model: nn.Module) -> None:
    """Weights of norms and biases away from the ones and zeros of a new model."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))


def of_all_families(family: str) -> MLLM:
    torch.manual_seed(0)
    model, processor = tiny_families.build(family)
    unevenly(model)
    return MLLM(model, processor)


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_parts_sum_to_the_logit_of_every_family(family: str) -> None:
    mllm = of_all_families(family)
    image, query = prepared(mllm, (60, 90))
    for asked in (query, query.including_prompt()):
        parts = check_sum(mllm, image, asked)
        assert all(part.abs().max() > 0 for part in (parts.image[0], parts.mlp, parts.embedding))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_parts_sum_to_the_logit_behind_other_language_models(name: str) -> None:
    torch.manual_seed(0)
    _, processor = shared("llava")
    config, options = LANGUAGE_MODELS[name]
    config = T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(
            **{**tiny_models.VISION, "num_hidden_layers": 3}, image_size=84, patch_size=14
        ),
        text_config=config(**tiny_models.text_config(processor.tokenizer, **options)),
        image_token_id=processor.tokenizer.image_token_id,
    )
    model = T.LlavaForConditionalGeneration(config).eval()
    if name == "biases":
        model.lm_head.bias = nn.Parameter(torch.zeros(model.lm_head.out_features))
    unevenly(model)
    parts = check_sum(MLLM(model, processor), *prepared(MLLM(model, processor), (84, 84)))
    assert (parts.rest.abs().max() > 1e-3) == (name in ("stablelm", "biases"))


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_vl"])
def test_parts_sum_to_the_logit_at_another_scale(family: str) -> None:
    mllm = of_all_families(family)
    image, query = prepared(mllm, SIZES[family])
    larger = torch.nn.functional.interpolate(image, scale_factor=2)
    parts = check_sum(mllm, larger, query)
    assert parts.image[0].shape[1] == mllm.layouts(larger, query)[0].n_tokens


def dot(left: Tensor, right: Tensor) -> float:
    return sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def gains(norm: nn.Module, family: str) -> Tensor:
    weight = norm.weight.detach()
    return 1 + weight if family == "gemma3" else weight


def divided(gain: Tensor, state: Tensor, eps: float) -> Tensor:
    """The gain over the root mean square of a state: by what a norm multiplies it."""
    return gain / (dot(state, state) / len(state) + eps) ** 0.5


def write_out(mllm: MLLM, image: Tensor, query: Query, family: str) -> tuple[Tensor, Tensor]:
    """Contributions (T, n) of all n states, and of MLPs and embeddings (T,), sum by sum."""
    decoder = mllm.model.get_decoder()
    seen: dict[Any, Tensor] = {}

    def see(module: nn.Module, args: Any, output: Any) -> None:
        seen[module] = (output[0] if isinstance(output, tuple) else output).detach()[0]

    def see_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        seen[module, "input"] = states.detach()[0]

    handles = [decoder.norm.register_forward_pre_hook(see_input, with_kwargs=True)]
    for layer in decoder.layers:
        handles.append(layer.register_forward_pre_hook(see_input, with_kwargs=True))
        watched = (layer.self_attn, layer.self_attn.v_proj, layer.mlp)
        handles += [part.register_forward_hook(see) for part in watched]
    with written_out(mllm, vision=False) as attention:
        mllm(image, query)
    for handle in handles:
        handle.remove()
    _, rows = places(mllm, query) if family != "gemma3" else (None, None)
    length = len(seen[decoder.norm, "input"])
    rows = range(length - len(query.answer_ids), length) if rows is None else rows.tolist()
    eps = decoder.layers[0].input_layernorm
    eps = getattr(eps, "variance_epsilon", getattr(eps, "eps", None))
    tokens = torch.zeros(len(rows), length, dtype=torch.float64)
    own = torch.zeros(len(rows), dtype=torch.float64)
    for t, row in enumerate(rows):
        last = seen[decoder.norm, "input"][row]
        word = mllm.model.get_output_embeddings().weight[query.answer_ids[t]].detach()
        direction = word * divided(gains(decoder.norm, family), last, eps)
        first = seen[decoder.layers[0], "input"][row]
        own[t] += dot(first, direction)
        for layer, (weights,) in zip(decoder.layers, attention):
            at_attention = at_mlp = direction
            if family == "gemma3":
                norms = layer.post_attention_layernorm, layer.post_feedforward_layernorm
                of_attention, of_mlp = (gains(norm, family) for norm in norms)
                at_attention = direction * divided(of_attention, seen[layer.self_attn][row], eps)
                at_mlp = direction * divided(of_mlp, seen[layer.mlp][row], eps)
            own[t] += dot(seen[layer.mlp][row], at_mlp)
            matrix = layer.self_attn.o_proj.weight.detach()
            values = seen[layer.self_attn.v_proj]
            heads, size = weights.shape[1], matrix.shape[1] // weights.shape[1]
            group = heads // (values.shape[1] // size)
            for head in range(heads):
                down = at_attention @ matrix[:, head * size : (head + 1) * size]
                shared_head = head // group
                part = values[:, shared_head * size : (shared_head + 1) * size]
                for state in range(length):
                    weight = float(weights[0, head, row, state].detach())
                    tokens[t, state] += weight * dot(part[state], down)
    return tokens, own


@pytest.mark.parametrize("family", WRITTEN_OUT)
def test_contributions_equal_the_sums_written_out(family: str) -> None:
    if family == "gemma3":
        mllm = of_all_families(family)
        mllm.model.double()
    else:
        mllm = sharp(family)
    image, query = prepared(mllm, SIZES.get(family, (112, 112)))
    parts = ask(mllm, query, image)
    tokens, own = write_out(mllm, image, query, family)
    encoding = mllm.encode((image,), query)
    near = {"rtol": 1e-5, "atol": 1e-7}  # Norms compute in float32.
    torch.testing.assert_close(parts.embedding + parts.mlp, own, **near)
    of_image = tokens[:, encoding.image_positions[0]]
    torch.testing.assert_close(parts.image[0], of_image, **near)
    torch.testing.assert_close(parts.text[:, :-1], tokens[:, encoding.earlier_positions], **near)
    assert not parts.text[:, -1].any()
    method = LogitDecomposition(mllm)
    maps = method.attribute(image, additional_forward_args=(query,))
    layout = mllm.layouts(image, query)[0]
    torch.testing.assert_close(maps[:, 0], layout.paint(of_image), **near)
    weights = method.attribute_text(image, additional_forward_args=(query,))
    torch.testing.assert_close(weights, parts.text)
    assert (maps < 0).any() and (maps > 0).any()
    for t, token in enumerate(query.answer_ids):
        call = {"target": (t, token), "additional_forward_args": (query,)}
        torch.testing.assert_close(method.attribute(image, **call), maps[t : t + 1], **near)


def test_a_model_wired_by_hand() -> None:
    """One head that looks everywhere evenly and copies what it reads: each token's share of the
    logit is its own state, normed, times the word's direction, over how many tokens there are."""
    model, processor = tiny_models.build("llava")
    (layer, idle), decoder = model.get_decoder().layers, model.get_decoder()
    with torch.no_grad():
        for part in (layer.self_attn, layer.mlp, idle.self_attn, idle.mlp):
            for weight in part.parameters():
                weight.zero_()
        # Channels 0 to 7 through head 0, whose values come from the first of two shared heads.
        layer.self_attn.v_proj.weight[:8, :8] = torch.eye(8)
        layer.self_attn.o_proj.weight[:8, :8] = torch.eye(8)
    mllm = MLLM(model, processor)
    image, query = prepared(mllm, (84, 84))
    parts = ask(mllm, query, image)
    encoding = mllm.encode((image,), query)
    states: list[Tensor] = []
    handles = [
        part.register_forward_pre_hook(lambda _, args: states.append(args[0].detach()[0].double()))
        for part in (layer, decoder.norm)
    ]
    mllm(image, query)
    for handle in handles:
        handle.remove()
    before, after = states
    eps = decoder.norm.variance_epsilon
    normed = before / (before.square().mean(1, keepdim=True) + eps).sqrt()
    words = model.lm_head.weight.detach()[list(query.answer_ids)].double()
    for t, row in enumerate(encoding.answer_rows.tolist()):
        direction = words[t] / (after[row].square().mean() + eps).sqrt()
        expected = normed[:, :8] @ direction[:8] / (row + 1)
        image_part = expected[encoding.image_positions[0]]
        torch.testing.assert_close(parts.image[0][t].double(), image_part, rtol=1e-4, atol=1e-6)
        assert float(parts.embedding[t]) == pytest.approx(
            float(before[row] @ direction), rel=1e-4, abs=1e-6
        )
    assert not parts.mlp.any() and not parts.rest.any()


def test_layers_without_softmax_attention_count_as_the_rest() -> None:
    mllm = of_all_families("qwen3_5")
    image, query = prepared(mllm, (60, 90))
    assert ask(mllm, query, image).rest.abs().max() > 1e-3


def test_a_model_whose_parts_do_not_add_up_is_refused_by_name() -> None:
    mllm = MLLM(*tiny_models.build("llava"))
    image, query = prepared(mllm, (84, 84))
    layer = mllm.model.get_decoder().layers[0]
    layer.register_forward_hook(lambda _, args, output: (3 * output).tanh())
    with pytest.raises(RuntimeError, match="parts of a logit of LlavaForConditionalGeneration"):
        ask(mllm, query, image)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_gradient_mode_are_left_as_they_were(fails: bool) -> None:
    mllm, image, query = used("qwen2_vl")
    mlp = mllm.model.get_decoder().layers[1].mlp

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = mlp.down_proj.register_forward_hook(fail) if fails else None
    before = snapshot(mllm.model)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            try:
                ask(mllm, query, image)
            except KeyboardInterrupt:
                assert fails
            assert torch.is_grad_enabled() == enabled
    assert snapshot(mllm.model) == before
    assert (handle is not None) == fails


def test_one_pass_serves_maps_weights_and_states() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    inp = ImageTextInput(noise((84, 112)), "what is it ?")
    with counted(mllm) as passes:
        result = MLLMAttribution(LogitDecomposition(mllm)).attribute(inp, target="a cat sits")
    assert len(passes) == 1
    image, query = mllm.prepare(inp, target="a cat sits")
    parts = ask(mllm, query, image)
    torch.testing.assert_close(result.token_attr, parts.text)
    with counted(mllm) as passes:
        arc = MLLMAttribution(ARC(MSEA(LogitDecomposition(mllm), scales=(0.5, 1.0))))
        cleaned = arc.attribute(inp, target="a cat sits")
    assert len(passes) == 2
    assert cleaned.image_attr.shape == result.image_attr.shape and cleaned.image_attr.any()
    assert TAM(LogitDecomposition(mllm)).attribute(image, additional_forward_args=(query,)).any()


def test_prompt_and_answer_are_those_of_each_alone() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm, (84, 84))
    alone = ask(mllm, query, image)
    with mllm.remember():
        both = ask(mllm, query.including_prompt(), image)
        kept = ask(mllm, query, image)
    for own, whole, again in zip(alone, both, kept):
        if isinstance(own, Tensor):
            torch.testing.assert_close(own, again)
            torch.testing.assert_close(own, whole[-len(own) :])


def test_half_precision_sums_up_to_its_rounding() -> None:
    model, processor = tiny_models.build("qwen2_vl")
    mllm = MLLM(model.bfloat16(), processor)
    image, query = prepared(mllm, (84, 112))
    parts = ask(mllm, query, image)
    assert all(part.dtype == torch.float32 for part in (*parts.image, *parts[2:]))
    assert (parts.total() - parts.logit).abs().max() < 0.02


def test_what_cannot_be_decomposed_is_refused() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm, (84, 84))
    with pytest.raises(ValueError, match=r"expected \(t, token_id\)"):
        ask(mllm, query, image, target=(7, 5))
    with pytest.raises(ValueError, match="2 images"):
        ask(mllm, query, image.expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="Decomposition makes passes of its own"):
        MLLMAttribution(LogitDecomposition(mllm)).stream(ImageTextInput(noise((84, 84)), "what ?"))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="takes gradients"):
        ask(mllm, query, image)
