"""Models run without dropout, and are left as they were."""

from __future__ import annotations

from typing import Any

from torch import nn

from captum_mllm.models.hooks import evaluation_mode


def test_the_last_of_several_to_end_restores_the_model() -> None:
    model: Any = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    first, second = evaluation_mode(model), evaluation_mode(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == [True, True, False]
