"""The confidence of a hit: what it must be for any scores, and for a model of few words."""

import numpy as np
import pytest
import torch
from conftest import WORDS
from conftest import small_model
from torch import Tensor

from promptswitch_nb.confidence import FEWEST
from promptswitch_nb.confidence import Calibration
from promptswitch_nb.confidence import best_scores
from promptswitch_nb.confidence import best_scores_elsewhere
from promptswitch_nb.confidence import null_texts
from promptswitch_nb.confidence import read_texts
from promptswitch_nb.confidence import verdict


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Draw vectors of length one."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.02, 0.3])
def test_is_a_smoothed_share_that_never_claims_more_than_n_texts_can(n, spread):
    drawn = np.random.default_rng(n).normal(0.3, 1, n) * spread + 0.2
    calibration = Calibration.fit(drawn, 10)
    grid = np.linspace(-2, 2, 2001)
    confidence = calibration.confidence(grid)
    assert (np.diff(confidence) >= 0).all() and np.isfinite(confidence).all()
    assert confidence[0] == pytest.approx(0, abs=1e-9)
    assert confidence[-1] == pytest.approx(n / (n + 1))
    share = np.mean(drawn[None] < grid[:, None], axis=1) * n / (n + 1)
    far = abs(grid[:, None] - drawn[None]).min(1) > 12 * calibration.width
    assert np.allclose(confidence[far], share[far], atol=1e-4)


def test_is_the_mean_of_logistic_steps():
    calibration = Calibration.fit([0.1, 0.15, 0.3, 0.35], 10)
    steps = [1 / (1 + np.exp(-(0.2 - b) / calibration.width)) for b in calibration.scores]
    assert calibration.confidence(0.2) == pytest.approx(sum(steps) / 5)


def test_an_empty_index_claims_nothing():
    null = best_scores(unit(5, 16), unit(0, 16))
    assert Calibration.fit(null, 0) == Calibration()
    assert Calibration.fit([0.5], 0).confidence(0.9) == 0


def test_width_shrinks_with_more_texts_and_ignores_outliers():
    drawn = np.random.default_rng(0).normal(0.3, 0.05, 3000)
    few, many = Calibration.fit(drawn[:30], 9).width, Calibration.fit(drawn, 9).width
    assert 1e-3 < many < 0.6 * few
    with_outliers = np.concatenate([drawn, np.full(100, 5.0)])
    assert Calibration.fit(with_outliers, 9).width == pytest.approx(many, rel=0.1)


def test_shape_is_kept():
    calibration = Calibration.fit([0.1, 0.2, 0.3], 3)
    assert calibration.confidence(0.2).shape == ()
    assert calibration.confidence(np.full((2, 3, 4), 0.2)).shape == (2, 3, 4)
    assert Calibration().confidence([[0.5]]).tolist() == [[0.0]]


def test_order_of_the_texts_does_not_matter():
    assert Calibration.fit([0.3, 0.1, 0.2], 3) == Calibration.fit(torch.tensor([0.1, 0.2, 0.3]), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_best_scores_do_not_depend_on_blocks(block, dtype):
    queries, vectors = unit(5, 16), unit(50, 16, seed=1).to(dtype)
    expected = (queries @ vectors.float().T).amax(1)
    assert torch.allclose(best_scores(queries, vectors, block=block), expected, atol=1e-6)


def test_a_window_is_not_compared_with_its_own_file():
    vectors = unit(20, 16).repeat_interleave(2, 0)  # each twice, in the same file
    files = np.arange(40) // 2
    best = best_scores_elsewhere(vectors, files, block=7)
    assert len(best) == 40 and best.max() < 0.99
    assert best_scores_elsewhere(vectors, np.arange(40)).min() > 0.99


@pytest.mark.parametrize("before, now, stale", [(100, 125, 0), (100, 126, 1), (100, 74, 1)])
def test_is_stale_when_the_index_changed_by_a_quarter(before, now, stale):
    assert Calibration.fit([0.1], before).is_stale(now) == bool(stale)


def test_own_words_are_known_to_a_model_of_few_words():
    model = small_model()
    unknown = model.tokenize(["zebra"])[0, 1]
    assert not (model.tokenize(null_texts(words=WORDS)) == unknown).any()
    assert (model.tokenize(null_texts()) == unknown).float().mean() > 0.2
    vectors = unit(30, 16)
    with torch.no_grad():
        null = best_scores(model.encode_text(null_texts(40, words=WORDS)), vectors)
    assert 0 <= Calibration.fit(null, 30).confidence(0.0) < 1


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "holds 0 texts"),
        (b"\n \n" + b"a text\n" * (FEWEST - 1), f"holds {FEWEST - 1} texts"),
        (b"\xff\xfe", "save it as UTF-8"),
    ],
)
def test_refuses_a_file_that_is_no_list_of_texts(tmp_path, content, says):
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_texts(file)


@pytest.mark.parametrize("value", [-0.1, 1.0, 7, float("nan")])
def test_refuses_a_minimum_that_nothing_can_reach(value):
    with pytest.raises(ValueError, match="min_confidence"):
        verdict(Calibration(), 0.3, value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_scores_that_are_no_numbers(bad):
    with pytest.raises(ValueError, match="finite"):
        Calibration.fit([0.1, bad], 5)


def test_verdict_says_nothing_where_the_hit_passes():
    calibration = Calibration.fit(np.linspace(0.1, 0.3, 99), 50)
    confidence = float(calibration.confidence(0.28))
    assert verdict(calibration, 0.28, confidence) == ""
    assert verdict(calibration, 0.28, confidence + 1e-6).startswith("Nothing like that here")
