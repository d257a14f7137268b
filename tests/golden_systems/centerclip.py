"""CenterCLIP's clusters, segments and tower are those of its released code."""

import torch
from einops import rearrange
from golden import compare
from torch import Tensor

from promptswitch_nb.baselines.centerclip import CenterCLIP
from promptswitch_nb.baselines.centerclip import CenterCLIPConfig
from promptswitch_nb.baselines.centerclip import affinity
from promptswitch_nb.baselines.centerclip import distances
from promptswitch_nb.baselines.centerclip import farthest_first
from promptswitch_nb.baselines.centerclip import k_medoids
from promptswitch_nb.baselines.centerclip import longest
from promptswitch_nb.baselines.centerclip import spectral_rows
from promptswitch_nb.clip import tiny_clip

OTHER = {  # what their module can do instead of clustering; no system here
    f"module.{name}" for name in ("pooling", "sparse_sampling", "temporal_shift", "token_shift")
}


def build(golden: dict, **options) -> CenterCLIP:
    """Build a tower of the released size, with its weights."""
    sizes, weights = golden["expected"], golden["weights"]
    patch, side = weights["conv1.weight"].shape[-1], golden["inputs"]["images"].shape[-1]
    assert side // patch == sizes["grid"]
    config = dict(
        embed_dim=weights["proj"].shape[1],
        quick_gelu=True,
        vision_cfg=dict(
            image_size=side,
            patch_size=patch,
            layers=sizes["layers"],
            width=sizes["ViT_width"],
            head_width=sizes["ViT_width"] // sizes["ViT_heads"],
        ),
        text_cfg=dict(context_length=8, width=16, heads=2, layers=1),
    )
    towers = tiny_clip(["a"], config=config)
    towers.model.visual.load_state_dict(weights)
    before, after = sizes["frames_before"], sizes["frames_after"]
    (block,) = sizes["cases"]["kmediods++"]["block_with_clustering_1_based"]
    config = CenterCLIPConfig(
        frames_per_segment=before // after,
        after=(block - 1) / sizes["layers"],
        centers=sizes["K"],
        official=True,
        **options,
    )
    return CenterCLIP(towers, config)


def clusters(golden: dict) -> dict[str, Tensor]:
    """Cluster by distances: first centres, medoids, and each token's cluster."""
    x, K, found = golden["inputs"]["cluster.x"], golden["expected"]["K"], {}
    for kind in ("euclidean", "cosine"):
        found[f"kkz.{kind}.first"] = farthest_first(distances(x, kind), longest(x), K)
        medoids, place = k_medoids(distances(x, kind, exact=False), longest(x), K)
        found[f"kmedoids.{kind}.medoids"], found[f"kmedoids.{kind}.assign"] = medoids, place
    return found


def count_neighbours(golden: dict) -> int:
    """Count the ties that every token keeps in the released graph, besides its own."""
    ties = golden["outputs"]["spectral.KNN.affinity_of_x"] > 0
    return ties.sum(dim=-1).min().item() - 1


def spectral(golden: dict) -> dict[str, Tensor]:
    """Compute ties, and what is cut: each token's first companion."""
    inputs, sigma, found = golden["inputs"], golden["expected"]["spectral_sigma"], {}
    K = int(golden["outputs"]["spectral.true_labels"].max()) + 1
    for name, neighbours in dict(HeatKernel=0, KNN=count_neighbours(golden)).items():
        options = dict(sigma=sigma, neighbours=neighbours)
        found[f"spectral.{name}.affinity_of_x"] = affinity(inputs["cluster.x"], **options)
        ties = affinity(inputs["spectral.y"], **options)
        rows = spectral_rows(ties, K)
        place = k_medoids(distances(rows), ties.sum(-1).argmax(1), K)[1]
        same = place[:, :, None] == place[:, None]
        found[f"spectral.{name}.partition_of_y"] = same.int().argmax(dim=2)
    return found


def segments(golden: dict) -> dict[str, Tensor]:
    """Cluster the tokens of frames in segments."""
    tokens, sizes, found = golden["inputs"]["module.tokens"], golden["expected"], {}
    d = sizes["frames_before"] // sizes["frames_after"]
    parts = rearrange(tokens, "(s d) l e -> s d l e", d=d)
    for name, options in {
        "": {},
        ".mean": dict(means=True),
        ".prenorm": dict(unit_length=True),
    }.items():
        found[f"module.kmediods++{name}"] = build(golden, **options).cluster_segments(parts)
    return found


def tower(golden: dict) -> dict[str, Tensor]:
    """Run the whole tower, and mask what it makes."""
    sizes, model = golden["expected"], build(golden)
    videos = rearrange(golden["inputs"]["images"], "(b f) c h w -> b f c h w", b=sizes["B"])
    with torch.no_grad():
        tokens = model.clip.project(model.clip.final_norm(model.segment_tokens(videos)))
        cls, _ = model.frame_features(videos, None)
        mask = golden["inputs"]["video_mask"].bool()
        _, real = model.frame_features(videos[:1].expand(len(mask), -1, -1, -1, -1), mask)
    case = sizes["cases"]["kmediods++"]
    assert tokens.shape[1:3] == (case["frames_after"], case["tokens_after"])
    found = {"tower.kmediods++.tokens": tokens.flatten(0, 1), "tower.kmediods++.cls": cls}
    return found | dict(video_mask_after=real.long())


def check_everything(golden: dict) -> None:
    """Each tensor of the two systems is compared, the spectral partition where it is stable."""
    found = clusters(golden) | spectral(golden) | segments(golden) | tower(golden)
    for kind in ("HeatKernel", "KNN"):
        name = f"spectral.{kind}.partition_of_y"
        stable = golden["expected"][f"spectral.{kind}.items_with_stable_partition"]
        decided_by_rounding = torch.ones(len(found[name]), dtype=torch.bool)
        decided_by_rounding[stable] = False
        found[name][decided_by_rounding] = golden["outputs"][name][decided_by_rounding]
    given = OTHER | {"spectral.true_labels"}
    compare(golden, found, {}, given=given, settings=golden["expected"].keys())


def check_that_separated_tokens_are_separated(golden: dict) -> None:
    """The partition is the true one where the released one is."""
    labels = golden["outputs"]["spectral.true_labels"]
    first = (labels[:, :, None] == labels[:, None]).int().argmax(dim=2)
    for kind in ("HeatKernel", "KNN"):
        items = golden["expected"][f"spectral.{kind}.items_equal_to_true_labels"]
        stable = golden["expected"][f"spectral.{kind}.items_with_stable_partition"]
        assert items and set(items) <= set(stable)
        ours = spectral(golden)[f"spectral.{kind}.partition_of_y"]
        assert torch.equal(ours[items], first[items])


def check_that_the_released_medoids_are_the_best(golden: dict) -> None:
    """With exact distances too, no member of a cluster is nearer to all others than its medoid."""
    x, K = golden["inputs"]["cluster.x"], golden["expected"]["K"]
    for kind in ("euclidean", "cosine"):
        measured, released = (
            distances(x.double(), kind),
            golden["outputs"][f"kmedoids.{kind}.medoids"],
        )
        ours, _ = k_medoids(measured, longest(x), K)
        for medoids in (released, ours):
            for d, of_set in zip(measured, medoids.tolist()):
                place = d[of_set].argmin(dim=0)
                for k, medoid in enumerate(of_set):
                    members = (place == k).nonzero()[:, 0]
                    sums = d[members][:, members].sum(dim=1)
                    assert d[medoid, members].sum() <= sums.min() + 1e-6
