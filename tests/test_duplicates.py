"""Copies are found where they were planted, and only there."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.duplicates import SAME
from promptswitch_nb.duplicates import Frames
from promptswitch_nb.duplicates import Judge
from promptswitch_nb.duplicates import Overlap
from promptswitch_nb.duplicates import candidate_pairs
from promptswitch_nb.duplicates import find_duplicates
from promptswitch_nb.duplicates import fold
from promptswitch_nb.duplicates import limit_of
from promptswitch_nb.duplicates import merge
from promptswitch_nb.duplicates import overlap
from promptswitch_nb.duplicates import usable_frames
from promptswitch_nb.system import make_system
from promptswitch_nb.video import open_video
from promptswitch_nb.writing import write_video

DATA = os.environ.get("PROMPTSWITCH_TEST_DATA")
E = 24


def path_of(seed: int, count: int) -> Tensor:
    """Draw vectors that are all different: (T,E) of unit norm."""
    drawn = torch.randn(count, E, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def frames_at(vectors: Tensor, start: float = 0.0, step: float = 1.0) -> Frames:
    """Make frames that stand for a step each."""
    count = len(vectors)
    times = start + (np.arange(count) + 0.5) * step
    return usable_frames(vectors, times, np.ones(count), (start, start + count * step))


@pytest.mark.parametrize("delay", [-5, -3, 0, 2, 6])
@pytest.mark.parametrize("step", [0.5, 2.0])
def test_finds_a_planted_row_at_its_place(delay, step):
    first, second = path_of(1, 12), path_of(2, 12)
    length = 5
    begin = 3
    if not 0 <= begin + delay <= 12 - length:
        begin = 6 if delay < 0 else 0
    second[begin + delay : begin + delay + length] = first[begin : begin + length]
    found = overlap(frames_at(first, 0, step), frames_at(second, 0, step), 0.95)
    expected = np.array([begin, begin + length, begin + delay, begin + delay + length]) * step
    assert np.allclose(found[:4], expected)
    assert found.similarity == pytest.approx(1, abs=1e-4)
    assert found.seconds == pytest.approx(length * step)
    assert found.delay == pytest.approx(delay * step)


def test_takes_the_longest_row_and_none_that_is_broken():
    first, second = path_of(1, 12), path_of(2, 12)
    second[0:3] = first[0:3]
    second[5:9] = first[6:10]
    assert overlap(frames_at(first), frames_at(second), 0.95)[:4] == (6, 10, 5, 9)
    second[7] = path_of(3, 1)[0]
    assert overlap(frames_at(first), frames_at(second), 0.95)[:4] == (0, 3, 0, 3)
    second[1] = path_of(4, 1)[0]
    assert overlap(frames_at(first), frames_at(second), 0.95) is None


def test_frames_half_a_step_apart_meet():
    first = path_of(1, 8)
    shifted = frames_at(first, start=0.4)
    assert overlap(frames_at(first), shifted, 0.95).seconds == pytest.approx(8)
    assert overlap(frames_at(first), shifted, 0.95).delay == pytest.approx(0.4)


def test_backwards_is_no_copy_and_a_still_is_one():
    first = path_of(1, 8)
    assert overlap(frames_at(first), frames_at(first.flip(0)), 0.95) is None
    still = first[:1].repeat(6, 1)
    assert overlap(frames_at(still), frames_at(still), 0.95).seconds == pytest.approx(6)


def test_one_frame_does_not_match_many():
    still = path_of(1, 1).repeat(6, 1)
    once = path_of(2, 6)
    once[2] = still[0]
    assert overlap(frames_at(still), frames_at(once), 0.95) is None
    assert overlap(frames_at(once), frames_at(still), 0.95) is None
    dense = frames_at(path_of(1, 1).repeat(24, 1), step=0.25)  # five of these to one of the others
    assert overlap(dense, frames_at(once), 0.95) is None
    assert overlap(frames_at(once), dense, 0.95) is None


def test_frames_that_are_not_evenly_spaced_meet():
    vectors, jitter = path_of(1, 8), np.array([0.1, -0.2, 0.2, 0.0, -0.1, 0.2, -0.2, 0.1])
    uneven = usable_frames(vectors, np.arange(8) + 0.5 + jitter, np.ones(8), (0, 8))
    assert overlap(frames_at(vectors), uneven, 0.95).seconds == pytest.approx(8)


def test_the_order_of_the_sampler_does_not_matter():
    vectors, times = path_of(1, 6), np.arange(6) + 0.5
    order = [3, 0, 5, 1, 4, 2]
    mixed = usable_frames(vectors[order], times[order], np.ones(6), (0, 6))
    assert torch.equal(mixed.vectors, usable_frames(vectors, times, np.ones(6), (0, 6)).vectors)


@pytest.mark.parametrize("dark, witness", [(0, True), (2, True), (3, False), (6, False)])
def test_a_window_that_is_flat_for_half_its_time_is_no_witness(dark, witness):
    contrast = np.where(np.arange(6) < dark, 0.01, 0.1)
    part = usable_frames(path_of(1, 6), np.arange(6) + 0.5, contrast, (0, 6))
    assert (overlap(part, part, 0.9) is not None) == witness


def test_limit_is_the_spread_of_the_lower_half():
    drawn = np.random.default_rng(0).normal(0, 0.1, 20_000)
    plain = limit_of(np.tanh(drawn), SAME)
    assert plain == pytest.approx(np.tanh(SAME * 0.1), abs=0.01)
    upper = np.tanh(np.where(drawn > 0, 5 * drawn, drawn))  # what lies above does not count
    assert limit_of(upper, SAME) == pytest.approx(plain, abs=1e-6)
    assert limit_of(np.tanh(drawn + 0.5), SAME) == pytest.approx(
        np.tanh(0.5 + SAME * 0.1), abs=0.01
    )
    assert limit_of([0.1] * 19, SAME) == 1 - 1e-6  # too few to judge by
    assert limit_of([0.1] * 20, SAME) == pytest.approx(0.1)
    assert limit_of(np.tanh(drawn), 3) < plain < limit_of(np.tanh(drawn), 9) < 1


def test_windows_of_one_file_are_no_strangers():
    files = (np.arange(40) >= 32).astype(int)  # two files; the windows of each are all alike
    vectors = path_of(1, 2)[files]
    frames = [frames_at(vector[None]) for vector in vectors]
    cosine = float(vectors[0] @ vectors[-1])
    judge = Judge.fit(vectors, files, frames.__getitem__)
    assert (judge.windows, judge.frames) == pytest.approx((cosine, cosine), abs=1e-5)


def test_merge_joins_what_goes_on_and_nothing_else():
    one, on = Overlap(0, 10, 5, 15, 0.9), Overlap(9, 20, 14, 25, 0.8)
    other_delay, later = Overlap(9, 20, 40, 51, 0.8), Overlap(30, 40, 35, 45, 0.7)
    assert merge([on, one], 1) == [Overlap(0, 20, 5, 25, 0.9)]
    assert merge([one, other_delay], 1) == [one, other_delay]
    assert merge([later, one], 1) == [one, later]


def test_merge_drops_a_second_diagonal_beside_the_first():
    one, beside, elsewhere = (
        Overlap(0, 20, 0, 20, 0.9),
        *(Overlap(5, 10, start, start + 5, 0.9) for start in (9, 29)),
    )
    assert merge([beside, one], 1) == [one]
    assert merge([elsewhere, one], 1) == [one, elsewhere]


@pytest.mark.parametrize("block", [4, 1000])
def test_each_pair_of_different_files_comes_once_the_smaller_row_first(block):
    files = np.arange(12) // 2
    pairs = np.concatenate(list(candidate_pairs(path_of(1, 12), files, -1.0, block=block)))
    expected = {(i, j) for i in range(12) for j in range(i + 1, 12) if files[i] != files[j]}
    assert len(pairs) == len(expected)
    assert {tuple(pair) for pair in pairs.tolist()} == expected


def small_index() -> tuple:
    """Make windows of 40 films, of which two are copies, and one shows a part of another."""
    rows = []
    for film in range(40):
        vectors = path_of(film % 38 + 1, 20)  # 38 and 39 are copies of 0 and 1
        vectors = vectors[4:16] if film == 39 else vectors
        for start in range(0, len(vectors) - 5, 4):
            rows.append((film, frames_at(vectors[start : start + 8], start)))
    files, frames = np.array([row[0] for row in rows]), [row[1] for row in rows]
    means = torch.stack([part.vectors.mean(0) for part in frames])
    return torch.nn.functional.normalize(means, dim=1), files, frames


@pytest.mark.parametrize("block", [3, 17, 4096])
def test_lists_the_copies_of_an_index_whatever_the_blocks(block):
    vectors, files, frames = small_index()
    judge = Judge.fit(vectors, files, frames.__getitem__)
    found = find_duplicates(vectors, files, frames.__getitem__, judge, block=block)
    assert [(one.file, one.other) for one in found] == [(0, 38), (1, 39)]
    assert found[0].overlap[:4] == (0, 20, 0, 20)
    assert found[1].overlap[:4] == (4, 16, 0, 12)


def test_the_order_of_the_rows_does_not_matter():
    vectors, files, frames = small_index()
    judge = Judge.fit(vectors, files, frames.__getitem__)
    expected = find_duplicates(vectors, files, frames.__getitem__, judge)
    order = np.random.default_rng(0).permutation(len(files))
    mixed = [frames[row] for row in order]
    assert find_duplicates(vectors[order], files[order], mixed.__getitem__, judge) == expected


def test_fold_lists_a_copy_once_under_the_best_hit():
    film = frames_at(path_of(1, 8))
    part = frames_at(path_of(1, 8)[:3])
    other = frames_at(path_of(2, 8))
    folds = fold([film, other, film, part, film], ["a", "b", "c", "d", "a"], 0.95)
    assert [one.hit for one in folds] == [0, 1, 4]  # the same file is no copy of itself
    assert [place for place, _ in folds[0].copies] == [2, 3]
    assert folds[0].copies[1][1].seconds == pytest.approx(3)
    long = frames_at(torch.cat([path_of(1, 8)[:3], path_of(3, 5)]))
    assert len(fold([film, long], ["a", "b"], 0.95)) == 2  # three of eight seconds are no copy
    assert len(fold([film, long], ["a", "b"], 0.95, share=0.3)) == 1


@pytest.mark.skipif(not DATA, reason="PROMPTSWITCH_TEST_DATA is not set")
def test_real_clips_written_again_are_found_and_black_beginnings_are_not(tmp_path):
    torch.manual_seed(0)
    model = make_system("clip_mean", tiny_clip(["a"])).eval()
    names = ("bunny_stretching", "frog_toy", "flower_blooming", "letter_blocks", "pig_toy")
    videos = []
    for name in names:
        reader = open_video(Path(DATA, "data", "clips", f"{name}.mp4"))
        numbers = np.linspace(0, len(reader) - 1, 24).astype(int)
        big = torch.tensor(reader.frames(numbers)).permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(big, (96, 128), mode="area").round().byte()
        videos.append(small.permute(0, 2, 3, 1).numpy())
    again = write_video(tmp_path / "again.mp4", videos[0], fps=6, options={"crf": "18"})
    reader = open_video(again)
    videos.append(reader.frames(np.arange(len(reader))))
    dark = np.zeros((24, 96, 128, 3), np.uint8)
    videos += [np.concatenate([dark, videos[1][12:]]), np.concatenate([dark, videos[2][12:]])]
    rows = []
    for number, pixels in enumerate(videos):
        for start in range(0, len(pixels) - 11, 12):
            chosen = start + np.array(model.preprocess.choose_frames(12))
            contrast = (pixels[chosen].mean(-1) / 255).std((1, 2))
            with torch.no_grad():
                seen = model.preprocess.to_input(pixels[chosen])[None]
                made = model.video_features(seen)
            span = start / 6, start / 6 + 2
            part = usable_frames(made["frames"][0], (chosen + 0.5) / 6, contrast, span)
            rows.append((number, made["pooled"][0], part))
    files, frames = np.array([row[0] for row in rows]), [row[2] for row in rows]
    vectors = torch.stack([row[1] for row in rows])
    judge = Judge.fit(vectors, files, frames.__getitem__)
    found = find_duplicates(vectors, files, frames.__getitem__, judge)
    pairs = {(one.file, one.other) for one in found}
    assert pairs == {(0, 5), (1, 6), (2, 7)}
