"""Whether the model depends on what a map marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_mllm._captum import TargetType
from captum_mllm.metrics.consistency import spearman_correlation
from captum_mllm.metrics.image_baselines import PixelBaseline
from captum_mllm.metrics.perturbation_curve import perturbation_curve


def insertion_auc(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    attributions: Tensor,
    baselines: PixelBaseline = "blur",
    additional_forward_args: Any = None,
    target: TargetType = None,
    steps: int = 20,
    perturbations_per_eval: int = 1,
    normalize: bool = False,
) -> Tensor:
    r"""
    Area under the insertion curve: the probability of the target while the pixels with the
    largest attributions replace the baseline first. The larger, the better.

    Source: "RISE: Randomized Input Sampling for Explanation of Black-box Models" (Petsiuk, Das,
    Saenko, BMVC 2018).

    Args:
        forward_func (Callable): A model or function, such as an :class:`~captum_mllm.MLLM`; see
            :func:`~captum_mllm.metrics.perturbation_curve` for what it must return.
        inputs (Tensor): Images, of shape (B, C, H, W) and a floating-point dtype.
        attributions (Tensor): Of shape (B, c, h, w); summed over c and resized to the images.
        baselines (Tensor, float or str, optional): ``"blur"``, ``"mean"``, ``"road"``, a tensor
            that broadcasts with ``inputs``, or a number; None is 0.
            Default: "blur"
        additional_forward_args (Any, optional): Further arguments of ``forward_func``.
            Default: None
        target (int, tuple, Tensor or list, optional): The output to look at, as in Captum.
            Default: None
        steps (int, optional): Number of steps of equal area.
            Default: 20
        perturbations_per_eval (int, optional): How many steps are evaluated in one call of
            ``forward_func``.
            Default: 1
        normalize (bool, optional): Whether to map the baseline's probability to 0 and the
            image's to 1; see :meth:`~captum_mllm.metrics.PerturbationCurve.area_under`.
            Default: False

    Returns:
        Tensor: One area per example, of shape (B,): in [0, 1] for probabilities and where it is
        normalised. The area of a random order for a constant map.

    Raises:
        TypeError: If a tensor or the baseline has a wrong type.
        ValueError: If shapes do not fit together, values are not finite, an option is out of its
            range, or the probability is not defined.

    Examples::

        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> images, maps = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
        >>> insertion_auc(network, images, maps, target=[0, 2]).shape
        torch.Size([2])

    The tokens of an answer of a multimodal LLM, each with its map::

        >>> def insertion_of_answer(mllm, image, query, maps):
        ...     target = list(enumerate(query.answer_ids))
        ...     images = image.expand(len(target), -1, -1, -1)
        ...     return insertion_auc(
        ...         mllm, images, maps, target=target, additional_forward_args=(query,)
        ...     )
    """
    curve = perturbation_curve(
        forward_func,
        inputs,
        attributions,
        "insertion",
        baselines,
        additional_forward_args,
        target,
        steps,
        perturbations_per_eval,
    )
    return curve.area_under(normalize)


def deletion_auc(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    attributions: Tensor,
    baselines: PixelBaseline = "blur",
    additional_forward_args: Any = None,
    target: TargetType = None,
    steps: int = 20,
    perturbations_per_eval: int = 1,
    normalize: bool = False,
) -> Tensor:
    r"""
    Area under the deletion curve: the probability of the target while the baseline replaces the
    pixels with the largest attributions first. The smaller, the better.

    Source: as for :func:`insertion_auc`.

    Args:
        forward_func (Callable): As for :func:`insertion_auc`.
        inputs (Tensor): Images, of shape (B, C, H, W) and a floating-point dtype.
        attributions (Tensor): Of shape (B, c, h, w); summed over c and resized to the images.
        baselines (Tensor, float or str, optional): ``"blur"``, ``"mean"``, ``"road"``, a tensor
            that broadcasts with ``inputs``, or a number; None is 0.
            Default: "blur"
        additional_forward_args (Any, optional): Further arguments of ``forward_func``.
            Default: None
        target (int, tuple, Tensor or list, optional): The output to look at, as in Captum.
            Default: None
        steps (int, optional): Number of steps of equal area.
            Default: 20
        perturbations_per_eval (int, optional): How many steps are evaluated in one call of
            ``forward_func``.
            Default: 1
        normalize (bool, optional): As for :func:`insertion_auc`.
            Default: False

    Returns:
        Tensor: One area per example, of shape (B,): in [0, 1] for probabilities and where it is
        normalised. The area of a random order for a constant map.

    Raises:
        TypeError: If a tensor or the baseline has a wrong type.
        ValueError: If shapes do not fit together, values are not finite, an option is out of its
            range, or the probability is not defined.

    Examples::

        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> images, maps = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
        >>> deletion_auc(network, images, maps, baselines="mean", target=1).shape
        torch.Size([2])
    """
    curve = perturbation_curve(
        forward_func,
        inputs,
        attributions,
        "deletion",
        baselines,
        additional_forward_args,
        target,
        steps,
        perturbations_per_eval,
    )
    return curve.area_under(normalize)


def area_over_perturbation_curve(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    attributions: Tensor,
    baselines: PixelBaseline = "blur",
    additional_forward_args: Any = None,
    target: TargetType = None,
    steps: int = 20,
    perturbations_per_eval: int = 1,
) -> Tensor:
    r"""
    Area over the perturbation curve (AOPC): the mean drop of the target's probability while the
    pixels with the largest attributions are deleted first. The larger, the better.

    With :math:`x^{(k)}` the image after :math:`k` of :math:`S` steps,

    .. math::
        \mathrm{AOPC} = \frac{1}{S + 1} \sum_{k=0}^{S} p(x^{(0)}) - p(x^{(k)})

    Source: equation 12 of "Evaluating the Visualization of What a Deep Neural Network Has
    Learned" (Samek et al., IEEE Transactions on Neural Networks and Learning Systems 2017).

    Args:
        forward_func (Callable): As for :func:`insertion_auc`.
        inputs (Tensor): Images, of shape (B, C, H, W) and a floating-point dtype.
        attributions (Tensor): Of shape (B, c, h, w); summed over c and resized to the images.
        baselines (Tensor, float or str, optional): ``"blur"``, ``"mean"``, ``"road"``, a tensor
            that broadcasts with ``inputs``, or a number; None is 0.
            Default: "blur"
        additional_forward_args (Any, optional): Further arguments of ``forward_func``.
            Default: None
        target (int, tuple, Tensor or list, optional): The output to look at, as in Captum.
            Default: None
        steps (int, optional): Number of steps of equal area, which end with the baseline.
            Default: 20
        perturbations_per_eval (int, optional): How many steps are evaluated in one call of
            ``forward_func``.
            Default: 1

    Returns:
        Tensor: One mean drop per example, of shape (B,), in [-1, 1] for probabilities.

    Raises:
        TypeError: If a tensor or the baseline has a wrong type.
        ValueError: If shapes do not fit together, values are not finite, an option is out of its
            range, or the probability is not defined.

    Examples::

        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> images, maps = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
        >>> area_over_perturbation_curve(network, images, maps, target=1).shape
        torch.Size([2])
    """
    curve = perturbation_curve(
        forward_func,
        inputs,
        attributions,
        "deletion",
        baselines,
        additional_forward_args,
        target,
        steps,
        perturbations_per_eval,
    )
    return (curve.probability[:, :1] - curve.probability).mean(-1)


def causal_correlation(drops: Tensor, masses: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""
    Spearman's correlation, over the objects of an image, of what each does to a word and of the
    word's map on it.

    Args:
        drops (Tensor): How far the log-probability of the word falls when the object is taken out
            of the scene, of shape (..., K).
        masses (Tensor): The share of the word's map on the object, of the same shape; see
            :func:`~captum_mllm.metrics.relevance_mass`.
        valid (Tensor, optional): Which objects there are, bool, of the same shape: for images
            with different numbers of objects.
            Default: None

    Returns:
        Tensor: In [-1, 1], of shape (...), in float64 (float32 on MPS). 0 for less than two
        objects, and where all drops or all masses are equal.

    Raises:
        ValueError: If the shapes differ, or a value that counts is not finite.

    Examples::

        >>> import torch
        >>> drops, masses = torch.tensor([[4.0, 0.1, 0.3]]), torch.tensor([[0.6, 0.0, 0.2]])
        >>> causal_correlation(drops, masses)
        tensor([1.], dtype=torch.float64)
    """
    return spearman_correlation(drops, masses, valid)
