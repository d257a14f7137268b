"""What the options of a fusion refuse."""

import math

import pytest

from promptswitch_nb.fusion import AttentionConfig
from promptswitch_nb.fusion import TopKConfig
from promptswitch_nb.fusion import TopKFusion
from promptswitch_nb.fusion import XPool
from promptswitch_nb.fusion import XPoolConfig


def refuses(call, contains):
    """Assert that a call is refused with a sentence."""
    with pytest.raises(ValueError) as caught:
        call()
    assert contains in str(caught.value)


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, "hot", True], ids=repr)
def test_temperature(wrong):
    message = f"temperature is {wrong!r}; it must be a number above 0"
    refuses(lambda: AttentionConfig(wrong), message)


@pytest.mark.parametrize("wrong", [0, 2.5, "3", None, True], ids=repr)
def test_k(wrong):
    refuses(lambda: TopKConfig(wrong), f"k is {wrong!r}; it must be a whole number, 1 or more")


@pytest.mark.parametrize("wrong", [0, 1.0, "1"], ids=repr)
def test_heads(wrong):
    refuses(lambda: XPoolConfig(heads=wrong), f"heads is {wrong!r}")


@pytest.mark.parametrize("wrong", [-0.1, 1, "0.3", math.nan], ids=repr)
def test_dropout(wrong):
    message = f"dropout is {wrong!r}; it must be a number from 0 to below 1"
    refuses(lambda: XPoolConfig(dropout=wrong), message)


def test_options_of_another_fusion():
    refuses(lambda: TopKFusion(16, AttentionConfig()), "it must be a TopKConfig")


def test_heads_that_do_not_divide_the_width():
    refuses(lambda: XPool(16, XPoolConfig(heads=3)), "heads is 3; it must divide E = 16")
