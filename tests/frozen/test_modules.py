"""`every_module` is `model.modules()`."""

import torch
from conftest import make_focus_model
from torch import nn

from focus_peft.frozen.modules import Modules, every_module


def test_it_finds_the_same_modules_in_the_same_order() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)}), nn.Dropout())
    model.register_module("nothing", None)
    model[1]["b"].append(model[2])
    assert every_module(model) == list(model.modules())
    for adapted in (make_focus_model(), make_focus_model(r=2)):
        torch.manual_seed(0)
        assert every_module(adapted) == list(adapted.modules())


def test_what_was_found_is_found_again_once_a_module_was_exchanged() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Dropout()))
    changes = [
        lambda: model.__setitem__(0, nn.Linear(2, 2)),
        lambda: model[1].append(nn.ReLU()),
        lambda: model[2].insert(0, model[1].pop(2)),  # to the neighbor: the modules are as many, in the same order
        lambda: model.register_module("nothing", None),
    ]
    for change in changes:
        before = Modules.of(model)
        model.eval()
        assert before.are_those_of(model)
        change()
        assert not before.are_those_of(model)
        assert Modules.of(model).every == list(model.modules())
