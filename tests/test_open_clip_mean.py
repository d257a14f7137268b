"""Models of open_clip, each kind with its own view and tokenizer, used as a system."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from conftest import NO_NEWS
from conftest import SHORT_RUN
from open_clip.transform import PreprocessCfg
from open_clip.transform import image_transform_v2
from PIL import Image
from torch import Tensor

from promptswitch_nb.baselines.open_clip_mean import OpenClipMean
from promptswitch_nb.baselines.open_clip_mean import build
from promptswitch_nb.baselines.open_clip_mean import pack
from promptswitch_nb.baselines.open_clip_mean import view_of
from promptswitch_nb.cli import main
from promptswitch_nb.clip import tiny_clip
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.gallery import encode_texts
from promptswitch_nb.hub import load_pretrained
from promptswitch_nb.model import VideoCLIP
from promptswitch_nb.model import get_model_class
from promptswitch_nb.model import load_model
from promptswitch_nb.model import make_system
from promptswitch_nb.preflight import ZERO_SHOT
from promptswitch_nb.preflight import ZeroShot
from promptswitch_nb.video import write_video

TEXTS = ["A red square moves left!", "a ring", "", "a " * 99]
TIMM = dict(image_size=64, timm_model_name="test_vit", timm_pool="map")
TEXT = dict(vocab_size=49408, width=32, heads=2, layers=2)
LAST = dict(no_causal_mask=True, proj_bias=True, pool_type="last", width=64)
HUBS = dict(hf_tokenizer_name="nobody/words", tokenizer_kwargs=dict(clean="canonicalize"))
COCA = dict(attn_pooler_heads=2, width=32, layers=2)
KINDS = dict(  # of small models: what open_clip_config.json says of each
    siglip=dict(
        embed_dim=64,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=TIMM | dict(timm_proj="none"),
        text_cfg=TEXT | LAST | HUBS | dict(context_length=16, vocab_size=40),
    ),
    pe=dict(
        embed_dim=32,
        custom_text=True,
        vision_cfg=TIMM | dict(timm_proj=None),
        text_cfg=TEXT | dict(context_length=20),
    ),
    mobile=dict(
        embed_dim=32,
        custom_text=True,
        vision_cfg=TIMM | dict(timm_model_name="test_byobnet", timm_pool="avg", timm_proj=None),
        text_cfg=TEXT | dict(context_length=24, no_causal_mask=True),
    ),
    coca=dict(
        embed_dim=32,
        custom_text=True,
        vision_cfg=COCA
        | dict(image_size=32, patch_size=16, head_width=16)
        | dict(attentional_pool=True, output_tokens=True),
        text_cfg=TEXT | dict(context_length=12, embed_cls=True, output_tokens=True),
        multimodal_cfg=COCA | dict(context_length=12, vocab_size=49408, heads=2),
    ),
    resnet=dict(
        embed_dim=32,
        vision_cfg=dict(image_size=64, layers=[1, 1, 1, 1], width=16, patch_size=None),
        text_cfg=TEXT | dict(context_length=24),
    ),
)
GREY = dict(mean=[0.5] * 3, std=[0.5] * 3)
VIEWS = dict(
    siglip=GREY | dict(interpolation="bicubic", resize_mode="squash"),
    pe=GREY | dict(interpolation="bilinear", resize_mode="squash"),
    mobile=dict(mean=[0.0] * 3, std=[1.0] * 3, interpolation="bilinear", resize_mode="shortest"),
    coca={},
    resnet=dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]),
)
TRANSFORMERS = '''
"""Stand in for the package transformers: a tokenizer of one id a word."""
import json
import pathlib
import shutil
import torch


class AutoTokenizer:
    def __init__(self, folder):
        self.file = pathlib.Path(folder, "words.json")
        self.words = json.loads(self.file.read_text())

    @classmethod
    def from_pretrained(cls, folder, cache_dir=None):
        return cls(folder)

    def save_pretrained(self, folder):
        shutil.copy(self.file, folder)  # as tokenizers do that are not of the fast kind
        pathlib.Path(folder, "more").mkdir()

    def __call__(self, texts, return_tensors, max_length, padding, truncation):
        assert (return_tensors, padding, truncation) == ("pt", "max_length", True)
        self.input_ids = torch.ones(len(texts), max_length, dtype=torch.long)
        for row, text in zip(self.input_ids, texts):
            ids = [self.words.index(word) + 3 if word in self.words else 2 for word in text.split()]
            ids = torch.tensor([*ids[: max_length - 1], 1])
            row[: len(ids)] = ids
        return self
'''
WORDS = ["a", "red", "square", "moves", "left", "ring"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Write the stand-in for transformers."""
    site = tmp_path_factory.mktemp("site")
    (site / "transformers.py").write_text(TRANSFORMERS)
    return site


@pytest.fixture(autouse=True)
def _no_hub(site, monkeypatch):
    """Let open_clip find the stand-in, whether transformers is installed or not."""
    spec = importlib.util.spec_from_file_location("transformers", site / "transformers.py")
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    monkeypatch.setitem(sys.modules, "transformers", stand_in)


def write_model(folder: Path, kind: str, **view: object) -> str:
    """Write a small model with random weights as open_clip does; return its name for open_clip."""
    folder.mkdir(parents=True)
    described = dict(model_cfg=KINDS[kind], preprocess_cfg=VIEWS[kind] | view)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "words.json").write_text(json.dumps(WORDS))
    torch.manual_seed(0)
    model = build(f"local-dir:{folder}", with_weights=False)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


@pytest.fixture(params=KINDS)
def named(request, tmp_path) -> str:
    """Write a model of a kind; return its name for open_clip."""
    return write_model(tmp_path / "model", request.param)


@pytest.fixture
def siglip(tmp_path) -> str:
    """Write a model of SigLIP's kind; return its name for open_clip."""
    return write_model(tmp_path / "model", "siglip")


def built(name: str) -> OpenClipMean:
    """Build the system as a user does."""
    return get_model_class("open_clip_mean").from_open_clip(name).eval()


def film(side: int | None = None) -> np.ndarray:
    """Draw noise of the size that a model wants, or a smooth film of another size."""
    draw = np.random.default_rng(0)
    if side:
        return draw.integers(0, 256, (12, side, side, 3), dtype=np.uint8)
    y, x = np.mgrid[:90, :160]
    picture = np.stack([x * 255 // 160, y * 255 // 90, 128 + 120 * np.sin(x / 3)], -1)
    return np.stack([np.roll(picture, 5 * shift, 1) for shift in range(12)]).astype(np.uint8)


def theirs(name: str, frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """Show frames to open_clip's model in open_clip's way: its input, and vectors (F,E)."""
    model = open_clip.create_model(name).eval()
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    pictures = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
    with torch.no_grad():
        vectors = [model.encode_image(picture[None], normalize=False)[0] for picture in pictures]
    return pictures, torch.stack(vectors)


@torch.no_grad()
def test_frames_are_seen_and_encoded_as_open_clip_does(named):
    model = built(named)
    for frames in (film(model.clip.image_size), film()):
        pictures, raw = theirs(named, frames)
        vectors = raw / raw.norm(dim=-1, keepdim=True)
        seen = model.preprocess.to_input(frames)
        apart = (seen - pictures).abs() * torch.tensor(model.clip.view["std"]).view(3, 1, 1) * 255
        exact = frames.shape[1] == frames.shape[2]
        assert apart.max() < (1e-3 if exact else 2.1) and apart.mean() < 0.3
        torch.testing.assert_close(
            model.encode_frames(pictures[None])[0], vectors, atol=1e-5, rtol=0
        )
        if exact:
            found = model.encode_frames(seen[None])[0]
            torch.testing.assert_close(found, vectors, atol=1e-5, rtol=0)
    mean = vectors.mean(0) / vectors.mean(0).norm()
    video = model.video_features(pictures[None])
    torch.testing.assert_close(video["pooled"][0], mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(video["frames"][0], raw, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode_video(pictures[None])[0], mean, atol=1e-5, rtol=0)
    mask = torch.tensor([[True] * 5 + [False] * 7])
    short = model.video_features(pictures[None], mask)["pooled"][0]
    mean = vectors[:5].mean(0) / vectors[:5].mean(0).norm()
    torch.testing.assert_close(short, mean, atol=1e-5, rtol=0)
    assert model.offline and video["frames"].shape == (1, 12, model.clip.embed_dim)


@torch.no_grad()
def test_texts_are_read_and_encoded_as_open_clip_does(named):
    model, whole = built(named), open_clip.create_model(named).eval()
    ids = open_clip.get_tokenizer(named)(TEXTS)
    assert torch.equal(model.tokenize(TEXTS), ids)
    assert ids.shape[1] == model.preprocess.max_words == model.clip.context_length
    vectors = whole.encode_text(ids, normalize=True)
    torch.testing.assert_close(model.encode_text(TEXTS), vectors, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_text(TEXTS[1]), vectors[1:2], atol=1e-5, rtol=0)
    raw, sentence = whole.encode_text(ids, normalize=False), model.text_features(ids)["sentence"]
    torch.testing.assert_close(sentence, raw, atol=1e-5, rtol=1e-4)
    for batch_size in (1, 3, 256):
        found = encode_texts(model, TEXTS, batch_size=batch_size)["pooled"]
        torch.testing.assert_close(found, vectors, atol=1e-5, rtol=0)


def test_how_it_sees_is_the_models_own_and_which_frames_the_presets(siglip, tmp_path):
    model, frames = built(siglip), film(64)
    path = write_video(tmp_path / "film.mp4", frames)
    assert model.load_frames(path).shape == (12, 3, 64, 64)
    view = dict(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", transform="whole_frame")
    assert {name: getattr(model.preprocess, name) for name in view} == view
    official = OpenClipMean.from_open_clip(siglip, preset="official").preprocess
    assert (official.transform, official.test_sampler) == ("whole_frame", "official_uniform")
    paper = OpenClipMean.from_open_clip(write_model(tmp_path / "m", "mobile")).preprocess
    assert (paper.transform, paper.interpolation) == ("crop", "bilinear")
    assert (paper.test_sampler, paper.flip) == ("uniform", False)


@torch.no_grad()
def test_a_saved_model_needs_nothing_else(named, tmp_path):
    model = built(named)
    frames = torch.randn(2, 3, 3, *[model.clip.image_size] * 2)
    video, text = model.encode_video(frames), model.encode_text(TEXTS)
    model.save(tmp_path / "saved")
    shutil.rmtree(named.removeprefix("local-dir:"))
    again = load_pretrained(tmp_path / "saved").eval()
    assert type(again) is OpenClipMean and again.preprocess == model.preprocess
    assert again.clip.view == model.clip.view and again.clip.transform == model.clip.transform
    for one in (again, load_model(again.save(tmp_path / "twice")).eval()):
        assert torch.equal(one.encode_video(frames), video)
        assert torch.equal(one.encode_text(TEXTS), text)


@torch.no_grad()
def test_a_fresh_process_loads_it_and_says_nothing(siglip, site, tmp_path):
    """Nothing is imported by hand, and open_clip does not warn of weights that come later."""
    model = built(siglip)
    model.save(tmp_path / "saved")
    text = model.encode_text(TEXTS)
    shutil.rmtree(tmp_path / "model")
    code = "import json, sys; from promptswitch_nb.model import load_model; "
    code += "model = load_model(sys.argv[1]).eval(); "
    code += "print(json.dumps(model.encode_text(json.loads(sys.argv[2])).tolist()))"
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved"), json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=path) | NO_NEWS,
    )
    assert not done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), text, atol=1e-6, rtol=0)


def test_a_real_tokenizer_of_the_hub_is_kept_whole(tmp_path, monkeypatch):
    """As above, with the package itself in place of the stand-in."""
    monkeypatch.undo()
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(letter, -6.0) for letter in "▁abcdef"]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    end = dict(single="$A </s>", special_tokens=[("</s>", 1)])
    unigram.post_processor = tokenizers.processors.TemplateProcessing(**end)
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    )
    name = write_model(tmp_path / "model", "siglip")
    own.save_pretrained(tmp_path / "model")
    model = built(name)
    ids = model.tokenize(TEXTS)
    assert ids[0].tolist() == [3, 4, 5, 6, 7, *[1] * 11]
    model.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "model")
    again = load_model(tmp_path / "saved")
    assert torch.equal(again.tokenize(TEXTS), ids)
    assert torch.equal(load_model(again.save(tmp_path / "twice")).tokenize(TEXTS), ids)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "mobile"])
def test_it_is_evaluated_by_the_command(kind, few_shapes, tmp_path):
    model = built(write_model(tmp_path / "model", kind))
    model.save(tmp_path / "saved")
    data = ["--dataset", "shapes", "--data-root", str(few_shapes)]
    options = ["--results-dir", str(tmp_path / "results"), "--run", "one"]
    for _ in range(2):  # the second time over results of a version that knew of no interpolation
        assert main(["evaluate", str(tmp_path / "saved"), *data, *options]) == 0
        [file] = (tmp_path / "results").glob("*.json")
        results = json.loads(file.read_text())
        assert results["preprocess"].pop("interpolation") == model.preprocess.interpolation
        if kind == "mobile":
            break  # its interpolation is not the one of then
        file.write_text(json.dumps(results))
    config = EvaluateConfig(str(tmp_path / "saved"), "shapes", *data[3:], results_dir=str(tmp_path))
    found, encoded = evaluate(config)
    assert found["metrics"] == results["metrics"] and found["metrics"]["videos"] == 4
    for pair, vector in zip(encoded.videos, encoded.video["pooled"], strict=True):
        frames = model.load_frames(pair.path)
        whole = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
        by_hand = torch.nn.functional.normalize(whole.encode_image(frames), dim=-1).mean(0)
        torch.testing.assert_close(vector, by_hand / by_hand.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", ["named", "tiny", "saved"])
def test_it_is_trained_by_the_command(start, few_shapes, tmp_path):
    name = write_model(tmp_path / "model", "pe")
    built(name).save(tmp_path / "saved")
    clip = dict(named=(name, ""), tiny=("tiny", ""), saved=("tiny", str(tmp_path / "saved")))[start]
    seen = dict(n_frames=3, test_frames=3, transform="crop", max_words=99)
    run = dict(preset="smoke", model="open_clip_mean", data_root=str(few_shapes)) | SHORT_RUN
    run |= dict(clip=clip[0], pretrained=clip[1], output_dir=str(tmp_path / "run")) | seen
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    model = load_model(tmp_path / "run" / "best").eval()
    assert (model.preprocess.transform, model.preprocess.n_frames) == ("crop", 3)
    if start == "tiny":
        assert {"ring", "square"} < {*model.clip.tokenizer.words}
        assert model.preprocess.interpolation == "bicubic"
        assert model.clip.model.visual.positional_embedding.std() > 0.3  # learns places at once
    else:
        assert model.preprocess.interpolation == "bilinear"
        old, new = built(name).state_dict(), model.state_dict()
        moved = [key for key in old if not torch.equal(old[key], new[key])]
        assert len(moved) == len(old)
        assert max((old[key] - new[key]).abs().max() for key in old) < 0.05  # and not far


def test_every_weight_that_is_trained_gets_a_gradient(named):
    """One that gets none stops training on several processes."""
    model = built(named).train()
    video = model.video_features(torch.randn(2, 3, 3, *[model.clip.image_size] * 2))
    text, ids = model.text_features(model.tokenize(TEXTS[:2])), None
    terms = model.losses(text, video, ids)
    terms["loss"].backward()
    assert terms["loss"] == terms["contrastive"]
    for key, weight in model.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, key
    frozen = {key.split(".")[2] for key, w in model.named_parameters() if not w.requires_grad}
    assert frozen <= {"text_decoder", "logit_bias"}
    assert sorted(model.parameter_groups()) == ["clip"]


def test_it_is_measured_like_the_others():
    """Efficiency builds every system around the same towers."""
    model = make_system("open_clip_mean", tiny_clip(["a"]))
    plain = make_system("clip_mean", model.clip)
    frames = torch.randn(1, 2, 3, 48, 48)
    torch.testing.assert_close(model.encode_video(frames), plain.encode_video(frames))
    assert torch.equal(model.encode_text("a"), plain.encode_text("a"))


def test_no_preflight_of_another_kind_of_towers(few_shapes, tmp_path, monkeypatch):
    """A number that is published for the weights is CLIP's own, with CLIP's own towers."""
    monkeypatch.setitem(ZERO_SHOT, ("shapes", "tiny"), ZeroShot(1.0, 2.0, 4, "made up"))
    built("tiny").save(tmp_path / "openai")
    monkeypatch.chdir(tmp_path)
    run = dict(preset="smoke", data_root=str(few_shapes), output_dir="run") | SHORT_RUN
    run |= dict(model="open_clip_mean", pretrained="openai", n_frames=2, test_frames=2)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert main(["train", "--config", "run.yaml"]) == 0
    assert not (tmp_path / "run" / "preflight.json").exists()


# What cannot be, and is said


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (dict(resize_mode="longest"), "resized by 'longest'"),
        (dict(interpolation="random"), "unknown interpolation 'random': choose bicubic or biline"),
    ],
)
def test_a_view_that_cannot_be_said_is_refused(view, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        built(write_model(tmp_path / "model", "pe", **view))


def test_pictures_that_are_not_square_are_refused():
    known = dict(mean=[0] * 3, std=[1] * 3, interpolation="bicubic", resize_mode="squash")
    with pytest.raises(ValueError, match="32 × 64 pixels"):
        view_of(known | dict(size=(32, 64)))
    assert view_of(known | dict(size=[32, 32])) == view_of(known | dict(size=32))


def test_weights_are_there_or_it_is_an_error(siglip, tmp_path):
    folder = Path(siglip.removeprefix("local-dir:"))
    weights = folder / "open_clip_pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="open_clip cannot build 'local-dir:"):
        built(siglip)
    weights.unlink()
    with pytest.raises(ValueError, match="(?s)cannot build 'local-dir:.*; connect to the network"):
        built(siglip)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match="it must hold an open_clip_config.json"):
        built(siglip)
    words = "(?s)cannot build 'RN50' with pretrained='nonsense': .*; connect to the network"
    with pytest.raises(ValueError, match=words):
        OpenClipMean.from_open_clip("RN50", pretrained="nonsense")
    with pytest.raises(ValueError, match="hf-hub:nobody/nothing cannot be read"):
        built("hf-hub:nobody/nothing")
    with pytest.raises(ValueError, match="brings its weights: leave pretrained='webli' empty"):
        OpenClipMean.from_open_clip("hf-hub:nobody/nothing", pretrained="webli")
    with pytest.raises(ValueError, match="did you mean .*RN50"):
        built("RN51")


def test_the_log_is_left_as_it_was(siglip):
    logging.disable(logging.DEBUG)
    try:
        built(siglip)
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)


def test_weights_of_another_activation_are_an_error(tmp_path, monkeypatch):
    config = tmp_path / "little-plain.json"
    config.write_text(json.dumps(KINDS["resnet"]))
    open_clip.add_model_config(config)
    try:
        model = open_clip.create_model("little-plain")
        torch.save(model.state_dict(), tmp_path / "weights.bin")
        tag = dict(url="", quick_gelu=True)
        monkeypatch.setattr(open_clip.factory, "get_pretrained_cfg", lambda name, tag_: tag)
        file = str(tmp_path / "weights.bin")
        monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: file)
        with pytest.raises(ValueError, match="; take the name with -quickgelu"):
            OpenClipMean.from_open_clip("little-plain", pretrained="openai")
        tag["quick_gelu"] = False
        made = OpenClipMean.from_open_clip("little-plain", pretrained="openai").clip.model
        assert torch.equal(made.visual.conv1.weight, model.visual.conv1.weight)
        monkeypatch.undo()
        made = OpenClipMean.from_open_clip("little-plain", pretrained=Path(file)).clip.model
        assert torch.equal(made.visual.conv1.weight, model.visual.conv1.weight)
    finally:
        open_clip.factory._MODEL_CONFIG_PATHS.remove(config)
        open_clip.factory._MODEL_CONFIGS.pop("little-plain")


def test_a_missing_package_is_named_before_the_download(siglip, site, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: pytest.fail("downloads"))
    with pytest.raises(ValueError, match="needs a package: pip install transformers"):
        built(siglip)


def test_what_a_stranger_may_not_say(siglip, tmp_path):
    built(siglip).save(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    whole = json.loads(file.read_text())

    def load_with(change) -> None:
        described = json.loads(json.dumps(whole))
        change(described)
        file.write_text(json.dumps(described))
        load_model(tmp_path / "saved")

    def runs_code(described):
        described["clip"]["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["trust_remote_code"] = True

    def leads_out(described):
        described["tokenizer"]["files"]["../evil.json"] = pack(b"{}")

    def replaces(described):
        described["tokenizer"]["files"]["open_clip_config.json"] = pack(b"{}")

    def is_cut(described):
        described["tokenizer"]["files"]["words.json"] = pack(b"[]" * 99)[:-8]

    for change, message in {
        runs_code: "option 'trust_remote_code', which is not followed",
        leads_out: "a file '../evil.json', which is not written",
        replaces: "a file 'open_clip_config.json', which is not written",
        is_cut: "config.json: a file of its tokenizer is damaged",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_with(change)
    load_with(lambda described: None)


def test_a_saved_model_of_another_kind_is_not_taken(siglip, tmp_path):
    built(siglip).save(tmp_path / "open")
    VideoCLIP(tiny_clip()).save(tmp_path / "clip")
    with pytest.raises(ValueError, match="is not built around CLIP's two towers"):
        VideoCLIP.from_open_clip("tiny", pretrained=tmp_path / "open")
    with pytest.raises(ValueError, match="holds no open_clip_mean"):
        OpenClipMean.from_open_clip("tiny", pretrained=tmp_path / "clip")
    with pytest.raises(ValueError, match="holds 'tiny', not 'ViT-B-16-SigLIP2': use that name"):
        OpenClipMean.from_open_clip("ViT-B-16-SigLIP2", pretrained=tmp_path / "open")


def test_inputs_of_another_model_are_refused(named):
    model = built(named)
    side, words = model.clip.image_size, model.clip.context_length
    with pytest.raises(ValueError, match=rf"\(B,F,3,{side},{side}\) for this model"):
        model.encode_video(torch.zeros(1, 2, 3, side + 16, side + 16))
    with pytest.raises(ValueError, match="of torch.uint8: read them with load_frames"):
        model.encode_video(torch.zeros(1, 2, 3, side, side, dtype=torch.uint8))
    with pytest.raises(ValueError, match="nothing to encode: 2 videos of 0 frames"):
        model.encode_video(torch.zeros(2, 0, 3, side, side))
    with pytest.raises(ValueError, match=rf"whole numbers \(Q,{words}\) for this model"):
        model.encode_text(model.tokenize("a")[:, :-1])
    with pytest.raises(ValueError, match="of torch.float32: tokenize with the model's own"):
        model.encode_text(model.tokenize("a").float())
    with pytest.raises(ValueError, match="no texts to encode: pass at least one row"):
        model.encode_text(model.tokenize("a")[:0])
    with pytest.raises(ValueError, match="no texts to encode: pass at least one$"):
        model.encode_text([])
    with pytest.raises(ValueError, match="is not a text"):
        model.encode_text([3])
    with pytest.raises(ValueError, match=rf"max_words is 5: this model reads {words}, no fewer"):
        OpenClipMean(model.clip, preprocess=model.preprocess.changed(max_words=5))
    with pytest.raises(ValueError, match="preprocess has interpolation = .*, the model"):
        other = {"bicubic": "bilinear", "bilinear": "bicubic"}[model.preprocess.interpolation]
        OpenClipMean(model.clip, preprocess=model.preprocess.changed(interpolation=other))
