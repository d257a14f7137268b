"""Weights come in the files that people have: what is there is loaded, what is not is named."""

import argparse
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import small_model
from safetensors.torch import load_file
from safetensors.torch import save_file
from torch import Tensor

from promptswitch_nb import saving
from promptswitch_nb import weights as weights_room
from promptswitch_nb.clip import CLIPTowers
from promptswitch_nb.evaluate import EvaluateConfig
from promptswitch_nb.evaluate import evaluate
from promptswitch_nb.frames import CLIP_MEAN
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import VideoCLIP
from promptswitch_nb.model import load_model
from promptswitch_nb.model import load_pretrained
from promptswitch_nb.model import load_towers
from promptswitch_nb.settings import ConfigError
from promptswitch_nb.train import TrainConfig
from promptswitch_nb.train import train
from promptswitch_nb.weights import load_clip

QUICK, EXACT = "weight-files-quickgelu", "weight-files"  # two architectures of open_clip's list
ARCHITECTURE = dict(
    embed_dim=32,
    vision_cfg=dict(image_size=16, patch_size=8, layers=2, width=32, head_width=16, mlp_ratio=4.0),
    text_cfg=dict(context_length=12, vocab_size=49408, width=32, heads=2, layers=2, mlp_ratio=4.0),
    quick_gelu=True,
)
HF_CONFIG = dict(
    model_type="clip",
    projection_dim=32,
    vision_config=dict(
        hidden_size=32,
        intermediate_size=128,
        num_attention_heads=2,
        num_hidden_layers=2,
        image_size=16,
        patch_size=8,
        hidden_act="quick_gelu",
    ),
    text_config=dict(
        hidden_size=32,
        intermediate_size=128,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=12,
        hidden_act="quick_gelu",
    ),
)
GREY = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> CLIPTowers:
    """Add the architectures to open_clip's list, and make the towers that are looked for."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, quick in {QUICK: True, EXACT: False}.items():
        config = json.dumps(ARCHITECTURE | dict(quick_gelu=quick))
        (folder / f"{name}.json").write_text(config)
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    return load_clip(QUICK).eval()


@pytest.fixture
def state(clip) -> dict[str, Tensor]:
    return clip.model.state_dict()


def marked(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write a prefix before each name."""
    return {prefix + name: weight for name, weight in state.items()}


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write open_clip's weights under Hugging Face's names."""
    tops = {ours: theirs for theirs, ours in weights_room._HF_TOP.items()}
    projections = {ours: theirs for theirs, ours in weights_room._HF_PROJECTION.items()}
    parts = {ours: theirs for theirs, ours in weights_room._HF_BLOCK.items()}
    out = {}
    for key, value in state.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](\w+)", key)
        if key in tops:
            out[tops[key]] = value
        elif key in projections:
            out[projections[key]] = value.T.contiguous()
        else:
            tower = "vision_model" if block[1] else "text_model"
            place = f"{tower}.encoder.layers.{block[2]}"
            if block[3] == "attn.in_proj":
                for letter, piece in zip("qkv", value.chunk(3), strict=True):
                    out[f"{place}.self_attn.{letter}_proj.{block[4]}"] = piece.clone()
            else:
                out[f"{place}.{parts[block[3]]}.{block[4]}"] = value
    return out


def halves(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Cut a state in two."""
    names = sorted(state)
    middle = len(names) // 2
    return [{name: state[name] for name in part} for part in (names[:middle], names[middle:])]


def same(found: CLIPTowers, clip: CLIPTowers) -> None:
    """Assert that all weights are those that were looked for."""
    own = found.model.state_dict()
    for name, weight in clip.model.state_dict().items():
        assert torch.allclose(own[name], weight, atol=1e-3), name


def huggingface_folder(folder: Path, files: dict[str, dict], config: dict | None = None) -> Path:
    """Write a folder of Hugging Face."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or HF_CONFIG))
    for name, content in files.items():
        if name.endswith(".safetensors"):
            save_file(content, folder / name, metadata=dict(format="pt"))
        elif name.endswith(".json"):
            (folder / name).write_text(json.dumps(content))
        else:
            torch.save(content, folder / name)
    return folder


# Files that hold all weights, whatever stands around them.

AROUND = {
    "a model entry": lambda state: dict(model=state, epoch=1),
    "a model_state_dict entry": lambda state: dict(model_state_dict=state, epoch=1),
    "a number among the weights": lambda state: state | dict(epoch=1),
    "the settings of the run": lambda state: dict(
        state_dict=state,
        args=argparse.Namespace(lr=1.0, output=pathlib.Path("runs"), sizes=[1, 2]),
    ),
    "numbers of NumPy": lambda state: dict(
        state_dict=state, best=np.float64(46.1), step=np.int64(3), curve=np.zeros(2, np.float32)
    ),
    "module.": lambda state: dict(state_dict=marked("module.", state)),
    "_orig_mod.": lambda state: marked("_orig_mod.", state),
    "module._orig_mod.": lambda state: marked("module._orig_mod.", state),
    "model.": lambda state: dict(state_dict=marked("model.", state), hyper_parameters=dict(a=1)),
    "clip.": lambda state: marked("clip.", state),
    "backbone.clip.": lambda state: marked("backbone.clip.", state),
    "half precision": lambda state: {name: weight.half() for name, weight in state.items()},
}


@pytest.mark.parametrize("name", AROUND)
def test_what_stands_around_the_weights_is_seen_through(name, clip, state, tmp_path):
    torch.save(AROUND[name](state), tmp_path / "weights.ckpt")
    same(load_clip(QUICK, pretrained=tmp_path / "weights.ckpt"), clip)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.clip."])
def test_prefixes_are_seen_through_in_safetensors(prefix, clip, state, tmp_path):
    save_file(marked(prefix, state), tmp_path / "weights.safetensors")
    same(load_clip(QUICK, pretrained=tmp_path / "weights.safetensors"), clip)


def test_what_is_no_part_of_clip_is_left_out_and_named(clip, state, tmp_path):
    more = {"head.weight": torch.ones(1), "head.bias": torch.ones(1)}
    torch.save(marked("clip.", state) | more, tmp_path / "weights.pt")
    with pytest.warns(UserWarning, match=r"left out, as no part of CLIP: 2 \(head.bias, head.wei"):
        same(load_clip(QUICK, pretrained=tmp_path / "weights.pt"), clip)
    torch.save(state | more, tmp_path / "weights.pt")  # these may belong to a CLIP of another kind
    with pytest.raises(ValueError, match="unknown weights 2"):
        load_clip(QUICK, pretrained=tmp_path / "weights.pt")


def test_a_path_may_begin_with_a_tilde(clip, state, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state, tmp_path / "weights.pt")
    same(load_clip(QUICK, pretrained="~/weights.pt"), clip)
    model = small_model()
    assert model.save("~/saved") == tmp_path / "saved"
    model.save_pretrained("~/shared")
    for place in ("~/saved", "~/shared"):
        assert load_model(place) and load_pretrained(place) and load_towers("tiny", place)
    assert not Path("~").exists()


def test_weights_from_a_gpu_come_to_the_processor(clip, state, tmp_path, monkeypatch):
    with monkeypatch.context() as forged:
        forged.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(state, tmp_path / "weights.pt")
    same(load_clip(QUICK, pretrained=tmp_path / "weights.pt"), clip)


# Folders of Hugging Face.


def test_a_folder_in_parts(clip, state, tmp_path):
    for kind, index in {
        "safetensors": "model.safetensors.index.json",
        "bin": "pytorch_model.bin.index.json",
    }.items():
        stem = "model" if kind == "safetensors" else "pytorch_model"
        parts = {
            f"{stem}-0000{i}-of-00002.{kind}": part
            for i, part in enumerate(halves(to_huggingface(state)), start=1)
        }
        where = {name: file for file, part in parts.items() for name in part}
        files = parts | {index: dict(metadata={}, weight_map=where)}
        folder = huggingface_folder(tmp_path / kind, files)
        same(load_clip(None, pretrained=folder), clip)
        (folder / f"{stem}-00002-of-00002.{kind}").unlink()
        with pytest.raises(ValueError, match="holds only .*-00001-of-00002.*: download the other"):
            load_clip(None, pretrained=folder)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "pytorch_model.fp16.bin"])
def test_a_folder_with_half_precision_only(name, clip, state, tmp_path):
    half = {name: weight.half() for name, weight in to_huggingface(state).items()}
    same(load_clip(None, pretrained=huggingface_folder(tmp_path / "hf", {name: half})), clip)


@pytest.mark.parametrize("prefix", ["module.", "clip.", "model."])
def test_a_folder_of_a_model_around_clip(prefix, clip, state, tmp_path):
    files = {"model.safetensors": marked(prefix, to_huggingface(state))}
    same(load_clip(None, pretrained=huggingface_folder(tmp_path / "hf", files)), clip)


def test_a_single_file_of_hugging_face(clip, state, tmp_path):
    folder = huggingface_folder(
        tmp_path / "hf", {"model.safetensors": to_huggingface(state)}, config=HF_CONFIG
    )
    file = folder / "model.safetensors"
    same(load_clip(None, pretrained=file), clip)
    with pytest.raises(ValueError, match=f"has GELU: use the name '{QUICK}'"):
        load_clip(EXACT, pretrained=file)
    alone = file.rename(tmp_path / "some.safetensors")
    same(load_clip(QUICK, pretrained=alone), clip)
    with pytest.raises(
        ValueError, match="some.safetensors: these weights do not tell their archit"
    ):
        load_clip(None, pretrained=alone)


def test_the_described_shape_is_compared_without_building_a_model(state, tmp_path, monkeypatch):
    files = {"model.safetensors": to_huggingface(state)}
    folder = huggingface_folder(tmp_path / "hf", files)
    built = []
    original = open_clip.CLIP.__init__
    monkeypatch.setattr(
        open_clip.CLIP,
        "__init__",
        lambda self, **config: built.append(1) or original(self, **config),
    )
    load_clip(QUICK, pretrained=folder)
    assert len(built) == 1
    with pytest.raises(ValueError, match=f"is not a ViT-B-16, but '{QUICK}': use that name"):
        load_clip("ViT-B-16", pretrained=folder)
    assert len(built) == 1


# What is not there is named.


def pointer(path: Path, state: dict) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 605157884\n")


def page(path: Path, state: dict) -> None:
    path.write_text("\n<!DOCTYPE html><html>Quota exceeded</html>")


def cut(path: Path, state: dict) -> None:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


def dead_link(path: Path, state: dict) -> None:
    path.symlink_to("../blobs/none")


def module(path: Path, state: dict) -> None:
    torch.save(dict(model=torch.nn.Linear(1, 1)), path)


def image_tower(path: Path, state: dict) -> None:
    save_file({name: w for name, w in to_huggingface(state).items() if "visi" in name}, path)


def text_tower(path: Path, state: dict) -> None:
    save_file({name: w for name, w in state.items() if not name.startswith("visual")}, path)


def two(path: Path, state: dict) -> None:
    teacher = {name: weight.clone() for name, weight in state.items()}
    save_file(marked("student.", state) | marked("teacher.", teacher), path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("model.safetensors", pointer, "is a pointer of git-lfs, .* run `git lfs pull`"),
        ("pytorch_model.bin", pointer, "is a pointer of git-lfs, .* run `git lfs pull`"),
        ("model.safetensors", page, "is a web page"),
        ("pytorch_model.bin", page, "is a web page"),
        ("model.safetensors", cut, "damaged or cut short"),
        ("pytorch_model.bin", cut, "damaged or cut short"),
        ("model.safetensors", dead_link, "is a link to a file that is not there"),
        ("pytorch_model.bin", dead_link, "is a link to a file that is not there"),
        (
            "pytorch_model.bin",
            module,
            r"an object of other code \(torch.nn.modules.linear.Linear\)",
        ),
        ("model.safetensors", image_tower, "holds the image tower only"),
        ("model.safetensors", text_tower, "holds the text tower only"),
        ("model.safetensors", two, "holds 2 models, under 'student.', 'teacher.'"),
    ],
)
def test_the_true_reason_is_told_of_a_file_and_of_a_folder(name, write, message, state, tmp_path):
    folder = huggingface_folder(tmp_path / "hf", {})
    write(folder / name, state)
    for path, architecture in ((folder, None), (folder / name, QUICK)):
        with pytest.raises((ValueError, OSError), match=message) as caught:
            load_clip(architecture, pretrained=path)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(text_config=dict(hidden_act="gelu")), r"hidden_act \['gelu', 'quick_gelu'\]"),
        (dict(vision_config=dict(layer_norm_eps=1e-6)), "layer_norm_eps"),
        (
            dict(text_config=dict(vocab_size=30000)),
            "hf: its text tower reads 30000 tokens of another tokenizer",
        ),
        (dict(vision_config=dict(image_size=24)), "is of another size than this model"),
        (dict(vision_config=3), "does not describe a CLIP"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change, message, state, tmp_path):
    config = {
        key: value | change.get(key, {}) if isinstance(change.get(key, {}), dict) else change[key]
        for key, value in HF_CONFIG.items()
        if isinstance(value, dict)
    }
    files = {"model.safetensors": to_huggingface(state)}
    folder = huggingface_folder(tmp_path / "hf", files, HF_CONFIG | config)
    with pytest.raises(ValueError, match=message):
        load_clip(None, pretrained=folder)


def test_torchscript_is_not_opened_unless_somebody_asks(state, clip, tmp_path, monkeypatch):
    file = tmp_path / "archive.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(file))
    opened = []
    monkeypatch.setattr(
        torch.jit, "load", lambda path, **options: opened.append(path) or clip.model
    )
    for load in (load_clip, VideoCLIP.from_open_clip):
        with pytest.raises(ValueError, match="pass allow_torchscript=True, or convert it once"):
            load(QUICK, pretrained=file)
        assert not opened
        assert load(QUICK, pretrained=file, allow_torchscript=True)
        assert opened.pop() == str(file)


# The activation and the colours that the weights were trained with.


@pytest.fixture
def tags(state, tmp_path, monkeypatch) -> None:
    """Add tags to open_clip's table, for weights on this disk."""
    save_file(state, tmp_path / "tagged.safetensors")
    tag = dict(file=str(tmp_path / "tagged.safetensors"), quick_gelu=True, **GREY)
    plain = dict(file=tag["file"])
    table = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(table, QUICK, dict(grey=tag, plain=plain))
    monkeypatch.setitem(table, EXACT, dict(grey=tag, plain=plain))


def test_a_tag_brings_its_activation_and_its_colours(tags, clip):
    found = load_clip(QUICK, pretrained="grey")
    same(found, clip)
    assert dict(mean=found.mean, std=found.std) == GREY
    assert load_clip(EXACT, pretrained="plain").mean == CLIP_MEAN
    with pytest.raises(ValueError, match=f"quick-GELU, {EXACT} has GELU: use the name '{QUICK}'"):
        load_clip(EXACT, pretrained="grey")
    with pytest.raises(
        ValueError, match=f"with GELU, {QUICK} has quick-GELU: use the name '{EXACT}'"
    ):
        load_clip(QUICK, pretrained="plain")


def test_every_tag_of_open_clip_has_the_activation_of_a_name():
    """For each tag that says quick-GELU, the error gives a name that open_clip has."""
    wrong = [
        (name, tag)
        for name, tag in open_clip.list_pretrained()
        if re.fullmatch(r"ViT-(B|L|H|bigG)-\d+(-\d+)?", name)
        and open_clip.pretrained.get_pretrained_cfg(name, tag).get("quick_gelu")
    ]
    assert len(wrong) > 12
    for name, tag in wrong:
        with pytest.raises(ValueError, match=f"use the name '{name}-quickgelu'"):
            load_clip(name, pretrained=tag)


def test_a_tag_that_cannot_be_fetched_says_what_else_to_give(tags, tmp_path):
    (tmp_path / "tagged.safetensors").unlink()
    with pytest.raises(
        ValueError, match="cannot fetch pretrained='grey' .*give the path of a file"
    ):
        load_clip(QUICK, pretrained="grey")


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_colours_reach_frames_training_and_evaluation(preset, tags, small_run, tmp_path):
    grey = PromptSwitch.from_open_clip(QUICK, pretrained="grey", preset=preset)
    plain = PromptSwitch.from_open_clip(QUICK, preset=preset)
    video = next(Path(small_run["data_root"]).rglob("*.mp4"))
    ours, theirs = grey.load_frames(video), plain.load_frames(video)
    colours = torch.tensor(CLIP_MEAN), torch.tensor(plain.preprocess.std)
    mean, std = (values.view(3, 1, 1) for values in colours)
    assert torch.allclose(ours * 0.25 + 0.5, theirs * std + mean, atol=1e-5)
    settings = small_run | dict(clip=QUICK, pretrained="grey", preset=preset, steps=1, k=0)
    folder = train(TrainConfig.from_dict(settings | dict(select_on="last")))
    model = load_model(folder / "last")
    assert dict(mean=model.preprocess.mean, std=model.preprocess.std) == GREY
    assert model.clip.mean == GREY["mean"]
    data = (str(folder / "last"), "folder", settings["data_root"])
    results, encoded = evaluate(EvaluateConfig(*data, results_dir=str(tmp_path / "results")))
    assert results["preprocess"]["mean"] == GREY["mean"]
    vector = model.eval().encode_video(model.load_frames(encoded.videos[0].path)[None])[0]
    assert torch.allclose(vector, encoded.video["pooled"][0], atol=1e-6)


@pytest.mark.parametrize("wrong", [[0.5], "grey", [0.5, 0.5, None], [0.1, 0.1, 0]])
def test_colours_that_cannot_be_are_refused(wrong, state, tmp_path):
    files = {"model.safetensors": to_huggingface(state)}
    files |= {"preprocessor_config.json": dict(image_mean=[0, 0, 0], image_std=wrong)}
    with pytest.raises(ValueError, match="std = .*: it must be a number for each colour"):
        load_clip(None, pretrained=huggingface_folder(tmp_path / "hf", files))


def test_a_folder_without_normalisation(state, tmp_path):
    files = {"model.safetensors": to_huggingface(state)}
    files |= {"preprocessor_config.json": dict(do_normalize=False)}
    found = load_clip(None, pretrained=huggingface_folder(tmp_path / "hf", files))
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))


# Checkpoints of the authors' code.

RELEASED = {
    "captioner.prenorm.": "caption_prenorm.",
    "captioner.decoder.": "caption_transformer.",
    "captioner.output.": "caption_head.",
    "aggregation.attention.": "clip.vision_model.attn.",
    "hook.cube.cube": "clip.vision_model.encoder.prompt_embedding",
}


@pytest.fixture(scope="module")
def official(clip) -> PromptSwitch:
    torch.manual_seed(1)
    model = PromptSwitch(
        load_clip(QUICK), PromptSwitch.config_of("official", frames_per_chunk=2)
    ).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture
def released(official) -> dict[str, Tensor]:
    """Write the model under the names of the authors' code."""
    clip, out = {}, {}
    for name, weight in official.state_dict().items():
        ours = next((prefix for prefix in RELEASED if name.startswith(prefix)), None)
        if ours:
            out[RELEASED[ours] + name.removeprefix(ours)] = weight
        else:
            clip[name.removeprefix("clip.model.")] = weight
    return out | marked("clip.", to_huggingface(clip))


def position_ids(state: dict) -> dict:
    names = [f"clip.{tower}.embeddings.position_ids" for tower in ("text_model", "vision_model")]
    return dict(state_dict=state | {name: torch.arange(5)[None] for name in names})


OFFICIAL = {
    "plain": lambda state: dict(epoch=1, state_dict=state, optimizer={}),
    "bare": lambda state: state,
    "module.": lambda state: dict(state_dict=marked("module.", state)),
    "_orig_mod.": lambda state: dict(state_dict=marked("_orig_mod.", state)),
    "model.": lambda state: dict(model=marked("model.", state)),
    "numbers of NumPy": lambda state: dict(state_dict=state, best=np.float64(46.1)),
    "settings": lambda state: dict(state_dict=state, args=argparse.Namespace(lr=1)),
    "position_ids": position_ids,
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_checkpoint_of_the_authors_code(name, official, released, tmp_path, monkeypatch):
    torch.save(OFFICIAL[name](released), tmp_path / "model_best.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    model = PromptSwitch.load_official("~/model_best.pth", vision_heads=2, text_heads=2).eval()
    frames = torch.randn(1, 4, 3, 16, 16)
    assert torch.allclose(model.encode_video(frames), official.encode_video(frames), atol=1e-6)


def test_a_saved_checkpoint_of_the_authors_is_evaluated_as_it_sees(released, small_run, tmp_path):
    torch.save(dict(state_dict=released), tmp_path / "model_best.pth")
    model = PromptSwitch.load_official(tmp_path / "model_best.pth", vision_heads=2, text_heads=2)
    folder = model.save(tmp_path / "official")
    data = (str(folder), "folder", small_run["data_root"])
    results, _ = evaluate(EvaluateConfig(*data, results_dir=str(tmp_path / "results")))
    seen = results["preprocess"]
    assert (seen["transform"], seen["test_sampler"]) == ("crop", "official_uniform")


# Saved models.


def test_a_saved_model_under_another_name_is_refused(clip, small_run, tmp_path):
    folder = VideoCLIP(clip).save(tmp_path / "quick")
    assert load_towers(QUICK, folder).config == load_towers(None, folder).config == clip.config
    small = small_run["pretrained"]
    for name, path, holds in (
        ("ViT-B-16", folder, QUICK),
        (EXACT, folder, QUICK),
        ("tiny", folder, QUICK),
        (QUICK, small, "tiny"),
    ):
        with pytest.raises(ValueError, match=f"CLIP is '{holds}', not '{name}': use that name"):
            VideoCLIP.from_open_clip(name, pretrained=path)
    with pytest.raises(ConfigError, match="CLIP is 'tiny', not 'ViT-B-16': use that name"):
        train(TrainConfig.from_dict(small_run | dict(clip="ViT-B-16")))


def contents(model: VideoCLIP) -> tuple:
    """Tell a model from another."""
    bias = model.clip.model.ln_final.bias
    return bias.tolist(), model.config, model.preprocess, model.record


def models() -> tuple[VideoCLIP, VideoCLIP]:
    """Make two models that differ in all that is saved."""
    old, new = small_model(), small_model(captioner_layers=1)
    torch.nn.init.normal_(new.clip.model.ln_final.bias)
    new.preprocess = new.preprocess.changed(max_words=9)
    old.record, new.record = dict(step=1), dict(step=2)
    return old, new


def is_killed_at(number: int, save: Callable, monkeypatch) -> bool:
    """Save, and be killed when a file is to get its name; tell whether it came to that."""
    calls, replace = [], os.replace

    def kill(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        replace(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", kill)
        try:
            save()
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("method", ["save", "save_pretrained"])
def test_a_killed_save_leaves_the_old_model_or_the_new(method, tmp_path, monkeypatch):
    seen = []
    for number in range(1, 9):
        old, new = models()
        folder = old.save(tmp_path / str(number))
        (folder / "notes.txt").write_text("mine")
        save = partial(getattr(new, method), folder)
        killed = is_killed_at(number, save, monkeypatch)
        found = contents(load_model(folder))
        assert found in (contents(old), contents(new))
        assert (folder / "notes.txt").read_text() == "mine"
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        seen.append(found == contents(new))
        if not killed:
            break
    assert seen == [False] + [True] * (len(seen) - 1) and len(seen) > 3


def test_a_killed_first_save_over_an_older_format(tmp_path, monkeypatch):
    old, new = models()
    folder = old.save(tmp_path / "model")
    description = json.loads((folder / "config.json").read_text())
    del description["save"]
    old_format = description | dict(format="promptswitch_nb model 2")
    (folder / "config.json").write_text(json.dumps(old_format))
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    assert contents(load_model(folder)) == contents(old)
    assert is_killed_at(2, lambda: new.save(folder), monkeypatch)
    assert contents(load_model(folder)) == contents(new)


def test_saving_where_one_cannot_is_an_error_that_names_the_place(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(
            OSError, match=f"cannot save the model in {place}: .*give a folder that"
        ):
            small_model().save(place)
    assert (tmp_path / "file").read_text() == "mine"

    def full(*args, **options):
        raise saving.SafetensorError("No space left on device")

    folder = small_model().save(tmp_path / "model")
    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        small_model(captioner_layers=1).save(folder)
    assert load_model(folder).config.captioner_layers == 3


def lacking(key: str) -> Callable[[dict], dict]:
    return lambda d: {name: value for name, value in d.items() if name != key}


def within(key: str, **changes) -> Callable[[dict], dict]:
    return lambda d: d | {key: d[key] | changes}


DAMAGED = [
    *((lacking(key), f"lacks '{key}'") for key in ("model", "options", "fusion", "preprocess")),
    *((lacking(key), f"lacks '{key}'") for key in ("clip", "tokenizer", "captioner")),
    (lacking("format"), "was not written by save"),
    (lambda d: lacking("clip")(d) | dict(format="promptswitch_nb model 1"), "lacks 'clip'"),
    (lambda d: d | dict(colour=1), "unknown key 'colour'"),
    (within("options", kk=3), "options has no 'kk', it knows frames_per_chunk"),
    (within("options", k=-1), "k must not be negative"),
    (within("preprocess", size=3), "preprocess has no 'size', it knows image_size"),
    (within("preprocess", image_size=17), "preprocess has image_size = 17, the model 16"),
    (within("preprocess", n_frames="six"), "config.json"),
    (within("fusion", options=dict(k=1)), "fusion.options has no 'k'"),
    (within("clip", depth=1), "config.json.*depth"),
    (within("clip", vision_cfg=dict(depth=1)), "config.json.*depth"),
    (within("tokenizer", kind="bert"), "unknown tokenizer kind 'bert'"),
    (within("tokenizer", size=1), "config.json.*size"),
    (within("model", name="x", path="no_such_package:Model"), "package that is not installed"),
    (within("model", name="x", path="promptswitch_nb.model:Nope"), "leads to no class"),
    (lambda d: d | dict(model=dict(name="x")), "lacks 'path'"),
    (lambda d: d | dict(options=[1]), "config.json"),
    (lambda d: d | dict(model="prompt_switch"), "config.json"),
    (lambda d: d | dict(format="promptswitch_nb model 9"), "newer format .*update promptswitch_nb"),
    (lambda d: d | dict(format="promptswitch model"), "was not written by save"),
    (lambda d: [d], "was not written by save"),
    (lambda d: None, "was not written by save"),
    (lambda d: {}, "was not written by save"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_a_damaged_description_is_an_error_in_one_sentence(change, message, tmp_path):
    folder = small_model().save(tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_whole_is_named(tmp_path):
    folder = small_model().save(tmp_path / "model")
    file, weights = folder / "config.json", folder / "model.safetensors"
    text, content = file.read_text(), weights.read_bytes()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="config.json is damaged .*; save the model again"):
        load_model(folder)
    file.write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(ValueError, match="config.json is damaged"):
        load_model(folder)
    file.write_text(text)
    weights.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="model.safetensors is missing or damaged"):
        load_model(folder)
    pointer(weights, {})
    with pytest.raises(ValueError, match="missing or damaged: .* is a pointer of git-lfs"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ValueError, match="missing or damaged: .* does not exist"):
        load_model(folder)
    weights.write_bytes(content)
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged"):
        load_model(folder)
    with pytest.raises(ValueError, match="file.txt is a file; give the folder"):
        (folder / "file.txt").write_text("x")
        load_model(folder / "file.txt")
