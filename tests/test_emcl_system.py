"""EMCL is trained, saved and evaluated as its config says, in both its forms."""

from pathlib import Path

import pytest
import torch
from conftest import SHORT_RUN

from promptswitch_nb.baselines.emcl import EMCL
from promptswitch_nb.baselines.emcl import EMFusion
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.fusion import two_stage
from promptswitch_nb.model import load_model
from promptswitch_nb.registry import path_of
from promptswitch_nb.settings import read_yaml
from promptswitch_nb.system import make_system
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import read_log
from promptswitch_nb.train import train

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "systems" / "emcl.yaml"
OF_SCALE = ("clip", "pretrained", "dataset", "variant", "max_words")  # of a config, not used here
WORDS = ["a", "red", "ring", "moves", "left"]


@pytest.mark.parametrize("official", [False, True])
def test_the_config_trains_and_evaluates(official, few_shapes, tmp_path):
    """Of the config, only the sizes and the data are changed."""
    values = read_yaml(CONFIG)
    whole = TrainConfig(**values)
    assert whole.model == "emcl" and whole.lr_clip == 1e-6
    about = {key: value for key, value in values.items() if key not in OF_SCALE} | SHORT_RUN
    about |= dict(model=path_of(EMCL), data_root=str(few_shapes), output_dir=str(tmp_path / "run"))
    about |= dict(n_frames=6, test_frames=6)
    if official:
        about |= dict(model_options=dict(official=True, block=3))
    run = train(TrainConfig.from_dict(about))
    losses = [row["loss"] for row in read_log(run) if "loss" in row]
    assert len(losses) == 2 and max(losses) < 100
    model = load_model(run / "best")
    assert type(model) is EMCL and model.config.official == official
    assert model.fusion.bases.any() and model.fusion.bases.shape[0] == (1 if official else 32)
    for rerank in (0, 2):
        results = str(tmp_path / "results")
        checkpoint = str(run / "best")
        config = EvaluateConfig(
            checkpoint, "shapes", str(few_shapes), results_dir=results, rerank=rerank
        )
        metrics = evaluate(config)[0]["metrics"]
        assert metrics["videos"] == 4 and 0 <= metrics["t2v/R@1"] <= 100


def features(model: EMCL) -> tuple[dict, dict]:
    """Make the features of four texts and three videos, with bases that were learned."""
    text = model.text_features(
        model.tokenize(["a ring", "a red ring moves left", "red", "left moves a ring"])
    )
    video = model.video_features(torch.randn(3, 12, 3, 48, 48))
    pairs = [{name: rows[:3] for name, rows in side.items()} for side in (text, video)]
    with torch.enable_grad():
        model.train().losses(*pairs, ids=None)
    model.eval()
    return text, video


@torch.no_grad()
def test_similarity_is_that_of_the_pair():
    """Blocks, the batch and the order of texts and videos change nothing, nor do two stages."""
    torch.manual_seed(0)
    model = EMCL(tiny_clip(WORDS))
    text, video = features(model)
    sims = model.similarity(text, video)
    assert model.fusion.bases.any() and sims.shape == (4, 3) and sims.abs().max() <= 1 + 1e-6
    for memory_mb in (1e-6, 1):
        assert torch.allclose(model.similarity(text, video, memory_mb=memory_mb), sims, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    turned = {name: values[order] for name, values in text.items()}
    assert torch.allclose(model.similarity(turned, video), sims[order], atol=1e-5)
    alone = {name: values[1:2] for name, values in text.items()}
    assert torch.allclose(model.similarity(alone, video), sims[1:2], atol=1e-5)
    first = two_stage(text, video, model.similarity, k=2).argmax(dim=1)
    best = (text["pooled"] @ video["pooled"].T).topk(2).indices
    assert torch.equal(first, best.gather(1, sims.gather(1, best).argmax(1, keepdim=True))[:, 0])


def test_the_fusion_goes_with_another_encoder():
    spec = dict(encoder="clip", fusion=path_of(EMFusion))
    model = make_system(spec, tiny_clip(WORDS), options=dict(fusion=dict(bases=4)))
    features(model)
    assert model.fusion.bases.any() and model.fusion.bases.shape[0] == 4


def test_what_it_cannot_be():
    with pytest.raises(ValueError, match="block is 0; it must be a whole number"):
        EMCL.config_of("official", block=0)
    mean = make_system("clip_mean", tiny_clip(WORDS)).fusion
    with pytest.raises(ValueError, match="EMCL has no MeanFusion"):
        EMCL(tiny_clip(WORDS), fusion=mean)
