"""Captum's methods on pixels, summed by image token."""

from __future__ import annotations

import torch
from captum.attr import InputXGradient

from captum_mllm.evaluation import published
from captum_mllm.evaluation.method import Case
from captum_mllm.metrics.image_baselines import image_baseline


def test_occlusion_is_the_drop_of_the_logit_where_windows_hide_a_pixel(case: Case) -> None:
    side, window, stride = 224, 112, 56
    maps = published.occlusion(case, windows=2, steps=4)
    empty = image_baseline(case.image, "mean")
    steps = (side - window) // stride + 1
    token = case.nouns[0]
    with torch.no_grad():
        whole = case.logits()[token, case.query.answer_ids[token]]
        total, count = torch.zeros(2, side, side)
        for row in range(steps):
            for column in range(steps):
                down = slice(row * stride, row * stride + window)
                across = slice(column * stride, column * stride + window)
                hidden = case.image.clone()
                hidden[..., down, across] = empty[..., down, across]
                logit = case.mllm(hidden, case.query)[0, token, case.query.answer_ids[token]]
                total[down, across] += whole - logit
                count[down, across] += 1
    expected = (total / count).reshape(14, 16, 14, 16).mean((1, 3)).relu()
    found = maps[token]
    torch.testing.assert_close(found / found.max(), expected / expected.max(), rtol=1e-3, atol=1e-3)


def test_input_x_gradient_is_summed_over_the_cells_of_tokens(case: Case) -> None:
    token, other = case.nouns[0], case.nouns[0] - 1
    case.words = (case.words[token], case.words[other])
    found = published.input_x_gradient(case)
    image = case.image.clone().requires_grad_()
    pixels = InputXGradient(case.mllm).attribute(
        image, target=(token, case.query.answer_ids[token]), additional_forward_args=(case.query,)
    )
    expected = pixels.sum(1).reshape(14, 16, 14, 16).mean((1, 3)).relu()
    torch.testing.assert_close(found[token], expected.detach(), rtol=1e-3, atol=1e-6)
    assert found[other].max() == 0


def test_integrated_gradients_start_from_the_mean_colour(case: Case) -> None:
    case.words = (case.words[case.nouns[0]],)
    of_image = published.integrated_gradients(case, n_steps=2).max()
    case.image = image_baseline(case.image, "mean").clone()
    assert published.integrated_gradients(case, n_steps=2).max() < 1e-4 * of_image
