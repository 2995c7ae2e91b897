"""`every_module` is `model.modules()`."""

import torch
from conftest import make_focus_model
from torch import nn

from focus_peft.walk import every_module


def test_it_finds_the_same_modules_in_the_same_order() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)}), nn.Dropout())
    model.register_module("nothing", None)
    model[1]["b"].append(model[2])
    assert every_module(model) == list(model.modules())
    for adapted in (make_focus_model(), make_focus_model(r=2)):
        torch.manual_seed(0)
        assert every_module(adapted) == list(adapted.modules())
