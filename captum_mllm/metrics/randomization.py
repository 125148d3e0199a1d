"""Whether an explanation depends on what the model has learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from captum_mllm.metrics.consistency import Measure, map_similarity


def randomization_sanity(
    model: nn.Module,
    explain: Callable[[], Tensor],
    layers: Sequence[str],
    measure: Measure = "spearman",
    seed: int = 0,
) -> Tensor:
    r"""
    Sanity check by cascading weight randomisation: how much is left of the maps when the model's
    weights are lost, layer after layer.

    Layers are randomised one after the other and stay so. Each parameter is redrawn from a normal
    distribution with its own mean and standard deviation, so that activations keep their order of
    magnitude. An explanation whose similarity stays high does not explain the model. The weights
    are put back at the end, and where an exception is raised.

    Source: "Sanity Checks for Saliency Maps" (Adebayo et al., NeurIPS 2018).

    Args:
        model (nn.Module): The model that is explained.
        explain (Callable): Makes the maps, of shape (..., h, w), with the model as it is at the
            call: ``lambda: LayerGradCam(model, model.layer4).attribute(image, target=3)``. It must
            not take them from a cache.
        layers (Sequence[str]): Names of modules with parameters, as in ``model.named_modules()``,
            in the order in which they are randomised; usually from the output to the input.
        measure (str, optional): ``"spearman"`` or ``"cosine"``; see
            :func:`~captum_mllm.metrics.map_similarity`.
            Default: "spearman"
        seed (int, optional): Of the random weights.
            Default: 0

    Returns:
        Tensor: Similarity of the maps to the original ones after each step, in [-1, 1], of shape
        (len(layers), ...), in float64 (float32 on MPS).

    Raises:
        TypeError: If a layer's parameters are not floating-point ones, such as quantised weights.
        ValueError: If a name is not that of a module with parameters, or no name is given.

    Examples::

        >>> import torch
        >>> from captum.attr import Saliency
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(),
        ...     torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(16, 5),
        ... )
        >>> image = torch.rand(2, 3, 8, 8, requires_grad=True)
        >>> def explain():
        ...     return Saliency(network).attribute(image, target=2).sum(1)
        >>> randomization_sanity(network, explain, layers=["4", "0"]).shape
        torch.Size([2, 2])
    """
    steps = _parameters(model, layers)
    original = explain().detach().clone()
    similarities = []
    with _restored([parameter for step in steps for parameter in step]):
        for number, step in enumerate(steps):
            _randomize(step, seed + number)
            similarities.append(map_similarity(explain(), original, measure))
    return torch.stack(similarities)


def _parameters(model: nn.Module, layers: Sequence[str]) -> list[list[nn.Parameter]]:
    """The parameters of each layer."""
    modules = dict(model.named_modules())
    if isinstance(layers, str) or not len(layers):
        raise ValueError(f"layers must be one or more names of modules, got {layers!r}")
    steps = []
    for name in layers:
        if name not in modules:
            raise ValueError(
                f"the model has no module {name!r}; model.named_modules() has their names"
            )
        parameters = list(modules[name].parameters())
        if not parameters:
            raise ValueError(f"the module {name!r} has no parameters that could be randomised")
        for parameter in parameters:
            if not parameter.is_floating_point():
                raise TypeError(
                    f"the module {name!r} has a parameter of dtype {parameter.dtype}, expected "
                    "floating point; load the model without quantisation"
                )
        steps.append(parameters)
    return steps


@torch.no_grad()
def _randomize(parameters: list[nn.Parameter], seed: int) -> None:
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        if not parameter.numel():
            continue
        values = parameter.float()
        mean, deviation = float(values.mean()), float(values.std(correction=0))
        parameter.normal_(mean, deviation, generator=generators[device])


@contextmanager
def _restored(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Afterwards the parameters have the values that they had before."""
    distinct = {id(parameter): parameter for parameter in parameters}.values()
    saved = [parameter.detach().clone() for parameter in distinct]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(distinct, saved, strict=True):
                parameter.copy_(values)
