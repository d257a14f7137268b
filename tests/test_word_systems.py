"""DRL, X-CLIP and X-Pool are trained, saved and evaluated by config, in all their forms."""

from pathlib import Path

import pytest
import torch

from promptswitch_nb.baselines.drl import DRL
from promptswitch_nb.baselines.xclip import TEMPERATURE
from promptswitch_nb.baselines.xclip import XCLIP
from promptswitch_nb.baselines.xclip import attend
from promptswitch_nb.baselines.xpool import XPoolCLIP
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.fusion import two_stage
from promptswitch_nb.model import load_model
from promptswitch_nb.registry import path_of
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.settings import read_yaml
from promptswitch_nb.shapes import make_shapes
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "systems"
SYSTEMS = dict(drl=DRL, xclip=XCLIP, xpool=XPoolCLIP)
FORMS = [
    (DRL, dict()),
    (DRL, dict(interaction="ti", temporal_layers=0)),
    (DRL, dict(interaction="dp")),
    (DRL, dict(interaction="xti")),
    (DRL, dict(official=True, cdcr=0.0)),
    (XCLIP, dict()),
    (XCLIP, dict(official=True, frozen_embeddings=True)),
]
SHORT = dict(batch_size=4, steps=2, evals_per_epoch=0, eval_every=2, log_every=1, workers=0)
SHORT |= dict(clip="tiny", pretrained="", dataset="shapes", threads=1, device="cpu")
OF_SCALE = ("clip", "pretrained", "dataset", "variant", "max_words")  # of a config, not used here


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Make a small set of moving shapes."""
    sizes = dict(n_train=16, n_val=4, n_test=4, n_compose=0, n_stills=2)
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", **sizes)


def trained(settings: dict, folder: Path, shapes: Path) -> Path:
    """Train two steps; return the folder of the run."""
    here = dict(data_root=str(shapes), output_dir=str(folder / "run"), n_frames=6, test_frames=6)
    run = train(TrainConfig.from_dict(settings | SHORT | here))
    losses = [row["loss"] for row in read_log(run) if "loss" in row]
    assert len(losses) == 2 and max(losses) < 100
    return run


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_config_trains_its_system(name, shapes, tmp_path):
    """Of the config, only the sizes and the data are changed."""
    values = read_yaml(FOLDER / f"{name}.yaml")
    whole = TrainConfig(**values)
    assert whole.model == name and whole.lr_clip == 1e-6
    about = {key: value for key, value in values.items() if key not in OF_SCALE}
    run = trained(about | dict(model=path_of(SYSTEMS[name])), tmp_path, shapes)
    model = load_model(run / "best")
    assert type(model) is SYSTEMS[name] and not getattr(model.config, "official", False)
    assert getattr(model.config, "frozen_embeddings", True)  # DRL's embeddings are trained


@pytest.mark.parametrize(("cls", "options"), FORMS)
def test_a_form_is_trained_saved_and_evaluated(cls, options, shapes, tmp_path):
    settings = dict(preset="smoke", model=path_of(cls), model_options=options)
    run = trained(settings, tmp_path, shapes)
    checkpoint, results = str(run / "best"), str(tmp_path / "results")
    for rerank in (0, 2):
        config = EvaluateConfig(
            checkpoint, "shapes", str(shapes), results_dir=results, rerank=rerank
        )
        metrics = evaluate(config)[0]["metrics"]
        assert metrics["videos"] == 4 and 0 <= metrics["t2v/R@1"] <= 100


def test_another_number_of_frames_is_an_error(shapes, tmp_path):
    settings = dict(preset="smoke", model=path_of(XCLIP), data_root=str(shapes))
    settings |= SHORT | dict(output_dir=str(tmp_path / "run"), n_frames=6, test_frames=12)
    with pytest.raises(ConfigError, match="n_frames is 6 and test_frames 12"):
        train(TrainConfig.from_dict(settings))
    model = XCLIP.from_open_clip("tiny")
    assert model.preprocess.n_frames == model.preprocess.test_frames == 12
    text = model.text_features(model.tokenize(["a ring"]))
    with torch.no_grad(), pytest.raises(ValueError, match="videos of 6 frames"):
        model.similarity(text, model.video_features(torch.randn(2, 6, 3, 48, 48)))


@pytest.mark.parametrize(("cls", "options"), FORMS)
def test_similarity_is_that_of_the_pair(cls, options):
    """Blocks, the batch and the order of texts and videos change nothing, nor do two stages."""
    torch.manual_seed(0)
    model = cls(tiny_clip(["a", "red", "ring", "moves", "left"]), cls.config_of("paper", **options))
    model = model.eval().requires_grad_(False)
    ids = model.tokenize(["a ring", "a red ring moves left", "red", "left moves a ring"])
    text = model.text_features(ids)
    assert torch.allclose(text["sentence"], model.clip.encode_text(ids), atol=1e-5)
    padding = text["words"][~text["mask"]]
    assert padding.any() == (cls is XCLIP and model.config.official)  # there it has a say
    video = model.video_features(torch.randn(3, 12, 3, 48, 48))
    sims = model.similarity(text, video)
    assert sims.shape == (4, 3) and sims.isfinite().all()
    for memory_mb in (1e-6, 1):
        assert torch.allclose(model.similarity(text, video, memory_mb=memory_mb), sims, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    turned = {name: values[order] for name, values in text.items()}
    assert torch.allclose(model.similarity(turned, video), sims[order], atol=1e-5)
    alone = model.text_features(ids[1:2])
    assert alone.keys() == text.keys()
    assert all(alone[name].shape[1:] == text[name].shape[1:] for name in text)
    assert torch.allclose(model.similarity(alone, video), sims[1:2], atol=1e-5)
    first = two_stage(text, video, model.similarity, k=2).argmax(dim=1)
    best = (text["pooled"] @ video["pooled"].T).topk(2).indices
    assert torch.equal(first, best.gather(1, sims.gather(1, best).argmax(1, keepdim=True))[:, 0])


def test_attention_is_a_mean_weighed_by_likeness():
    values = torch.tensor([[0.1], [0.2]])
    weight = torch.sigmoid(torch.tensor(0.1 / TEMPERATURE))
    found = attend(values, torch.eye(2))
    assert torch.allclose(found, weight * 0.2 + (1 - weight) * 0.1)
