from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from fakes import randomised
from scripts.networks import sam_attention
from scripts.networks.sam_encoders import sam_modeling
from scripts.networks.sam_vit import SamViT


@pytest.fixture(scope="module")
def small_vit():
    torch.manual_seed(0)
    vit = sam_modeling().ImageEncoderViT(
        img_size=128, embed_dim=16, depth=3, num_heads=2, use_rel_pos=True, window_size=3, global_attn_indexes=(0, 2)
    )
    randomised(vit).requires_grad_(False)
    for name, parameter in vit.named_parameters():
        if "rel_pos" in name or "qkv.weight" in name:
            parameter.mul_(10)  # so that attention, and the relative positions in it, decide the result
    return vit


def upstream_at(vit, size):
    """segment-anything's encoder at another size than it was made for: it interpolates all but absolute positions."""
    vit = copy.deepcopy(vit)
    grid = [s // 16 for s in size]
    position = F.interpolate(vit.pos_embed.permute(0, 3, 1, 2), grid, mode="bicubic", antialias=True)
    vit.pos_embed.data = position.permute(0, 2, 3, 1)
    return vit


# 8 x 8 tokens are the stored size; 6 x 10 needs interpolation; windows of 3 divide neither 8 nor 10
@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
@pytest.mark.parametrize("work_bytes", [1, 10_000, 2**24])
def test_sam_vit_equals_upstream_however_its_work_is_cut(small_vit, size, work_bytes, monkeypatch):
    monkeypatch.setattr(sam_attention, "work_bytes", lambda x: work_bytes)
    upstream = upstream_at(small_vit, size) if size != (128, 128) else small_vit
    tapped = []
    upstream.blocks[0].register_forward_hook(lambda module, args, out: tapped.append(out.permute(0, 3, 1, 2)))
    image = torch.randn(2, 3, *size)
    expected = upstream(image)
    features = SamViT(small_vit, taps=(0,))(image)
    for feature, wanted in zip(features, (tapped[0], expected), strict=True):
        torch.testing.assert_close(feature, wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def test_relative_positions_matter_in_that_comparison(small_vit):
    """With upstream's initial zeros a wrong bias would pass unseen."""
    image = torch.randn(1, 3, 128, 128)
    without = copy.deepcopy(small_vit)
    for name, parameter in without.named_parameters():
        if "rel_pos" in name:
            parameter.data.zero_()
    difference = (small_vit(image) - without(image)).abs().max()
    assert difference > 1e-2 * small_vit(image).abs().max()


def test_sam_vit_has_upstreams_parameter_names(small_vit):
    """So that the published checkpoints load, strictly."""
    assert SamViT(small_vit, taps=()).state_dict().keys() == small_vit.state_dict().keys()


def test_scripted_sam_vit_equals_eager(small_vit):
    vit = SamViT(small_vit, taps=(0,))
    scripted = torch.jit.script(vit)
    image = torch.randn(1, 3, 96, 160)
    for eager, script in zip(vit(image), scripted(image), strict=True):
        torch.testing.assert_close(script, eager)


def test_sam_modules_come_without_torchvision_and_leave_the_package_alone(bundle_root):
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from scripts.networks.sam_encoders import sam_modeling\n"
        "sam_modeling().MaskDecoder\n"
        "assert not any(m.split('.')[0] == 'segment_anything' for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(bundle_root)})
