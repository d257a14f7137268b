"""What the options of a fusion refuse."""

import math

import pytest
from conftest import refuses

from promptswitch_nb.fusion import AttentionConfig
from promptswitch_nb.fusion import TopKConfig
from promptswitch_nb.fusion import TopKFusion
from promptswitch_nb.fusion import XPool
from promptswitch_nb.fusion import XPoolConfig


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, "hot", True], ids=repr)
def test_temperature(wrong):
    message = f"temperature is {wrong!r}; it must be a number above 0"
    refuses(lambda: AttentionConfig(wrong), contains=message)


@pytest.mark.parametrize("wrong", [0, 2.5, "3", None, True], ids=repr)
def test_k(wrong):
    refuses(
        lambda: TopKConfig(wrong), contains=f"k is {wrong!r}; it must be a whole number, 1 or more"
    )


@pytest.mark.parametrize("wrong", [0, 1.0, "1"], ids=repr)
def test_heads(wrong):
    refuses(lambda: XPoolConfig(heads=wrong), contains=f"heads is {wrong!r}")


@pytest.mark.parametrize("wrong", [-0.1, 1, "0.3", math.nan], ids=repr)
def test_dropout(wrong):
    message = f"dropout is {wrong!r}; it must be a number from 0 to below 1"
    refuses(lambda: XPoolConfig(dropout=wrong), contains=message)


def test_options_of_another_fusion():
    refuses(lambda: TopKFusion(16, AttentionConfig()), contains="it must be a TopKConfig")


def test_heads_that_do_not_divide_the_width():
    refuses(lambda: XPool(16, XPoolConfig(heads=3)), contains="heads is 3; it must divide E = 16")
