"""What makes a step faster changes no number: compiled blocks, recomputed blocks, fused AdamW."""

from functools import partial
from unittest import mock

import pytest
import torch
from conftest import small_model
from torch import Tensor
from torch._dynamo.utils import counters

from promptswitch_nb import clip as clip_module
from promptswitch_nb.losses import predicted_tokens
from promptswitch_nb.model import PromptSwitch
from promptswitch_nb.model import make_system
from promptswitch_nb.steps import Stepper
from promptswitch_nb.steps import StepPlan

PLAN = dict(steps=9, lr_clip=1e-3, lr_new=1e-3)
CAPTIONS = ["a ring", "the square is moving left and up", "red", "a green ring moves down ."]
quick_compile = partial(torch.compile, backend="aot_eager")  # traces, and writes no kernels


def batch(model: PromptSwitch, captions: list[str] = CAPTIONS) -> tuple[Tensor, Tensor]:
    """Make a batch of noise."""
    torch.manual_seed(1)
    return torch.randn(len(captions), 2, 3, 16, 16), model.tokenize(captions)


def steps(**options) -> tuple[list[dict], dict[str, Tensor]]:
    """Make two steps with texts of different lengths; return the log and the weights."""
    model = small_model().train()
    stepper = Stepper(model, StepPlan(**PLAN, **options))
    texts = [CAPTIONS, CAPTIONS[:1] * 4, CAPTIONS[2:] * 2]
    rows = [stepper.step(i, [batch(model, captions)]) for i, captions in enumerate(texts)]
    return rows, model.state_dict()


def test_recomputed_blocks_make_the_same_step():
    runs = mock.Mock(side_effect=clip_module.run_block)
    expected = steps()
    with mock.patch.object(clip_module, "run_block", runs):
        found = steps(recompute=True)
    assert found[0] == expected[0]
    for name, weight in found[1].items():
        assert torch.equal(weight, expected[1][name]), name
    assert runs.call_count == 2 * 2 * 3  # forward and backward, two blocks, three steps


def test_compiled_blocks_make_the_same_step():
    expected = steps()
    counters.clear()
    with mock.patch("torch.compile", quick_compile):
        found = steps(compile=True)
    assert counters["stats"]["unique_graphs"] in range(2, 9)  # one or two a tower, not one a block
    assert not counters["graph_break"] and not counters["unimplemented"]
    for row, other in zip(found[0], expected[0]):
        assert row == pytest.approx(other, rel=1e-4)
    for name, weight in found[1].items():
        torch.testing.assert_close(weight, expected[1][name], rtol=1e-3, atol=1e-4)


def test_compiled_and_recomputed_blocks_make_the_same_step():
    with mock.patch("torch.compile", quick_compile):
        found = steps(compile=True, recompute=True)
    for row, other in zip(found[0], steps()[0]):
        assert row == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("system", ["clip_mean", "clip4clip_mean", "full_attention"])
def test_other_systems_take_the_options_too(system):
    model = make_system(system, small_model().clip).train()
    frames, ids = batch(model)
    with mock.patch("torch.compile", quick_compile):
        losses = [
            Stepper(model, StepPlan(**PLAN | dict(lr_clip=0, lr_new=0), **options)).step(
                0, [(frames, ids)]
            )["loss"]
            for options in ({}, dict(compile=True), dict(recompute=True))
        ]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_encoding_a_video_compiles_as_one_graph(training):
    model = small_model().train(training)
    frames, _ = batch(model)
    encode = torch.compile(model.encode_video, backend="eager", fullgraph=True)
    torch.testing.assert_close(encode(frames), model.encode_video(frames), rtol=1e-4, atol=1e-5)
    longer = torch.randn(3, 4, 3, 16, 16)
    torch.testing.assert_close(encode(longer), model.encode_video(longer), rtol=1e-4, atol=1e-5)


def test_only_words_that_are_to_be_predicted_meet_the_vocabulary():
    model = small_model().train()
    frames, ids = batch(model)
    seen = []
    model.captioner.output.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    Stepper(model, StepPlan(**PLAN)).step(0, [(frames, ids)])
    count = int(predicted_tokens(ids, end=model.clip.end).sum())
    assert seen == [(count, model.clip.text_width)] and count < ids[:, 1:].numel() / 2


def test_texts_are_cut_to_the_longest_in_the_tower_and_in_the_head():
    model = small_model().train()
    frames, ids = batch(model)
    widths = []
    for part in (model.clip.model.transformer.resblocks[0].ln_1, model.captioner.prenorm):
        part.register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    Stepper(model, StepPlan(**PLAN)).step(0, [(frames, ids)])
    longest = int((ids != 0).sum(1).max())
    assert ids.shape[1] > longest and widths == [longest, longest - 1]


def test_a_step_looks_at_the_numbers_of_the_device_once():
    """On a GPU each look waits: here, ids that are on the CPU may be looked at, others not."""
    model = small_model().train()
    stepper = Stepper(model, StepPlan(**PLAN, clip_grad=1.0, max_logit_scale=50))
    frames, ids = batch(model)
    looks = []
    really = {name: getattr(Tensor, name) for name in ("item", "tolist")}

    def look(name, tensor):
        looks.append(name)
        return really[name](tensor)

    with (
        mock.patch.object(Tensor, "item", lambda self: look("item", self)),
        mock.patch.object(Tensor, "tolist", lambda self: look("tolist", self)),
    ):
        stepper.step(0, [(frames, ids)])
    assert looks == ["tolist"]


def test_adamw_is_fused_and_goes_on_from_a_state_that_was_not():
    model = small_model().train()
    stepper = Stepper(model, StepPlan(**PLAN))
    assert stepper.optimizer.defaults["fused"]
    stepper.step(0, [batch(model)])
    plain = torch.optim.AdamW(stepper.optimizer.param_groups, fused=False, foreach=False)
    plain.load_state_dict(stepper.optimizer.state_dict() | {})
    stepper.optimizer.load_state_dict(plain.state_dict())
    stepper.step(1, [batch(model)])
