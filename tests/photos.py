"""Small images, generators and how often to try, for the tests of what is done to batches."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Generator, Tensor

sizes = st.integers(3, 9)
seeds = st.integers(0, 2**32)
quickly = settings(max_examples=25, deadline=None, derandomize=True)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def photos(n: int, c: int = 3, h: int = 8, w: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=rng(seed))
