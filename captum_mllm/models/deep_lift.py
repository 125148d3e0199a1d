"""DeepLift knows nothing of what a multimodal LLM is made of, so it is turned away."""

from __future__ import annotations

from torch import nn

from captum_mllm._captum import runs_deep_lift


def refuse_deep_lift(module: nn.Module) -> None:
    r"""Raise where DeepLift or DeepLiftShap is about to run a module.

    Their rules are for rectifiers, pooling and softmax as modules. Attention, norms and gated
    activations they would pass through as the gradient does, without a word.

    Raises:
        NotImplementedError: if so.
    """
    if runs_deep_lift(module):
        raise NotImplementedError(
            "DeepLift has no rules for the attention, the norms and the activations of a "
            "multimodal LLM and would return gradient * (input - baseline); take InputXGradient, "
            "which is that, or IntegratedGradients"
        )
