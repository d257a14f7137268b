"""What the tokenizers refuse."""

import numpy as np
import pytest

from promptswitch_nb.tokens import as_texts


@pytest.mark.parametrize("wrong", [None, 7, b"a cat", ["a cat", None], np.zeros((2, 3), int)])
def test_what_is_no_text_is_named(wrong):
    with pytest.raises(ValueError, match="is not a text: pass a string"):
        as_texts(wrong)
