"""The measurement of search: its videos are what they say, and its record holds all numbers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import small_model

from promptswitch_nb.shapes import make_shapes
from promptswitch_nb.windows import Windowing

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
import joined_shapes
import search_quality


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Make moving shapes, six of each look."""
    sizes = dict(n_train=1, n_val=1, n_test=72, n_compose=0, n_stills=1, size=16)
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", **sizes)


@pytest.mark.parametrize("kind", joined_shapes.KINDS)
def test_joined_videos_hold_their_clips_where_they_say(kind, data, tmp_path):
    records = json.loads((data / "captions_test.json").read_text())
    by_caption = {record["captions"][0]: record for record in records}
    joined = joined_shapes.join_clips(data, tmp_path, kind)
    offsets = set()
    for video in joined:
        pictures = joined_shapes.all_frames(video.path).astype(int)
        offsets.add(round(video.spans[0][0] * joined_shapes.FPS))
        assert 5 <= len(video.captions) <= 10
        for caption, span in zip(video.captions, video.spans):
            first, last = (round(joined_shapes.FPS * second) for second in span)
            clip = joined_shapes.all_frames(data / "videos" / by_caption[caption]["video"])
            assert last - first == len(clip) == 12
            assert np.abs(pictures[first:last] - clip).mean() < 12  # encoded twice
        assert len(pictures) == last
        looks = {(by_caption[c]["colour"], by_caption[c]["shape"]) for c in video.captions}
        assert kind == "any shapes" or len(looks) == 1
    assert len(offsets) > 3
    assert len({caption for video in joined for caption in video.captions}) == sum(
        len(video.captions) for video in joined
    )


def test_too_few_clips_are_refused(tmp_path):
    few = make_shapes(tmp_path / "few", n_train=1, n_val=1, n_test=4, n_compose=0, n_stills=1)
    with pytest.raises(ValueError, match="at least 5"):
        joined_shapes.join_clips(few, tmp_path / "joined", "any shapes")


def test_windows_are_encoded_as_the_model_encodes_them(data):
    model = small_model().eval()
    path = next((data / "videos").glob("test-*.mp4"))
    found = joined_shapes.encode_windows(model, path, Windowing(1.0, 0.5, find_cuts=False))
    assert found.spans.tolist() == [[0, 1], [0.5, 1.5], [1, 2]]
    assert found.frames.shape[:2] == found.times.shape == (3, 4)
    whole = joined_shapes.encode_windows(model, path, Windowing(0))
    expected = model.encode_video(model.load_frames(path)[None])
    assert np.allclose(whole.pooled.numpy(), expected.detach().numpy(), atol=1e-5)


def test_overlap_of_spans():
    assert search_quality.overlap_of((0, 2), (1, 3)) == pytest.approx(1 / 3)
    assert search_quality.overlap_of((0, 2), (0, 2)) == 1
    assert search_quality.overlap_of((0, 1), (2, 3)) == 0


def test_the_record_says_what_was_measured(data, tmp_path, monkeypatch):
    windows = {"between cuts": search_quality.WINDOWS["between cuts"]}
    monkeypatch.setattr(search_quality, "WINDOWS", windows)
    small_model().save(tmp_path / "model")
    search_quality.main(str(tmp_path / "model"), str(data), str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"model", "data", "settings", "commit", "device", "search"} < set(found)
    assert found["search"]["index"]["percent"] == pytest.approx(found["search"]["evaluate"])
    for kind in joined_shapes.KINDS:
        assert set(found[kind]["windows"]) == set(windows)
        assert found[kind]["clips"] >= 5 * found[kind]["videos"] > 0
        for numbers in found[kind]["windows"].values():
            assert numbers["window"]["n"] == found[kind]["clips"]
            assert numbers["right order"]["n"] == 8 * found[kind]["videos"]
            assert all(0 <= number["percent"] <= 100 for number in numbers.values())
