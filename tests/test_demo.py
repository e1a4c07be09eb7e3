"""A model to try on a picture: what it is tried on. What it answers is in `test_serve.py`."""

import torch

from budgetnet import data
from budgetnet.demo import examples_of


def test_examples_of_a_data_set_show_its_classes_in_turn():
    digits = data.load("digits", None)
    found = examples_of(digits.test, digits.classes)
    assert [example.name for example in found] == [*digits.classes] * 2
    many = data.Images(torch.arange(300, dtype=torch.uint8).view(300, 1, 1, 1), torch.arange(300) % 100)
    found = examples_of(many, [str(i) for i in range(100)])
    assert [example.name for example in found] == [str(i) for i in range(0, 100, 5)]
    assert [int(example.picture) for example in found] == [*range(0, 100, 5)]
