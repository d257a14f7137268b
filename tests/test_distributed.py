"""The gradients of a batch in two processes are those of the batch in one."""

import pytest
import torch
from conftest import small_model
from conftest import torchrun
from torch import nn

from promptswitch_nb.train import batch_losses

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from promptswitch_nb.distributed import join_processes, leave_processes, rank
from promptswitch_nb.model import load_model
from promptswitch_nb.train import batch_losses

torch.set_num_threads(1)
join_processes("cpu")
folder, found = sys.argv[1], {}
model = load_model(f"{folder}/model")
parallel = DistributedDataParallel(model)
frames, ids = (part.chunk(2)[rank()] for part in torch.load(f"{folder}/batch.pt"))
for reduction in ("batch_sum", "token_mean"):
    model.zero_grad()
    options = dict(end=model.clip.end, lam=0.5, reduction=reduction)
    batch_losses(parallel(frames, ids), ids, **options)["loss"].backward()
    found[reduction] = {name: p.grad.clone() for name, p in model.named_parameters()}
if rank() == 0:
    torch.save(found, f"{folder}/gradients.pt")
dist.barrier()
leave_processes()
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Return a model, a batch of eight pairs, and the gradients of two processes."""
    folder = tmp_path_factory.mktemp("two")
    model = small_model()
    nn.init.normal_(model.aggregation.attention.out_proj.weight, std=0.1)  # it starts at zero
    texts = ["a red square moves left", "a ring", "a blue square", "up and up and up"]
    texts += ["a green ring moves up .", "right", "a red ring", "left"]
    frames, ids = torch.randn(8, 2, 3, 16, 16), model.clip.tokenize(texts)
    model.save(folder / "model")
    torch.save((frames, ids), folder / "batch.pt")
    (folder / "script.py").write_text(SCRIPT)
    torchrun(folder / "script.py", folder)
    return model, frames, ids, torch.load(folder / "gradients.pt")


@pytest.mark.parametrize("reduction", ["batch_sum", "token_mean"])
def test_two_processes_have_the_gradients_of_one(case, reduction):
    model, frames, ids, of_two = case
    model.zero_grad()
    options = dict(end=model.clip.end, lam=0.5, reduction=reduction)
    batch_losses(model(frames, ids), ids, **options)["loss"].backward()
    for name, parameter in model.named_parameters():
        difference = (of_two[reduction][name] - parameter.grad).norm()
        assert difference < 1e-5 * parameter.grad.norm().clamp_min(1e-3), name
