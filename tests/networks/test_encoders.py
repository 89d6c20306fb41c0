from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fakes import randomised
from PIL import Image
from scripts.networks.sam_encoders import (
    BACKBONES,
    PIXEL_MEAN,
    FrozenEncoder,
    build_encoder,
    fingerprint,
    load_backbone,
    sam_modeling,
)
from scripts.networks.tiny_vit import ConvNorm, WindowAttention, from_windows, to_windows
from scripts.networks.weights import load_encoder
from skimage.measure import regionprops
from torch import nn


@pytest.fixture(scope="module")
def checkpoint(mobile_sam):
    return torch.load(mobile_sam, weights_only=True, map_location="cpu")


@pytest.fixture(scope="module")
def vit_t(checkpoint) -> FrozenEncoder:
    encoder = build_encoder("vit_t")
    load_backbone(encoder, checkpoint)
    return encoder


@pytest.fixture(scope="module")
def small_encoder() -> FrozenEncoder:
    torch.manual_seed(0)
    encoder = build_encoder("vit_test")
    randomised(encoder.backbone)
    return encoder


# ---------------------------------------------------------------- shapes

SHAPES = [
    ("vit_t", (256, 256), [(64, 64, 64), (128, 32, 32), (256, 16, 16)]),
    ("vit_t", (512, 512), [(64, 128, 128), (128, 64, 64), (256, 32, 32)]),
    ("vit_t", (320, 256), [(64, 80, 64), (128, 40, 32), (256, 20, 16)]),
    ("vit_test", (64, 96), [(8, 16, 24), (16, 8, 12), (32, 4, 6)]),
    ("vit_b", (64, 48), [(768, 4, 3), (768, 4, 3), (768, 4, 3), (256, 4, 3)]),
    ("vit_t_half", (256, 320), [(64, 32, 40), (128, 16, 20), (256, 8, 10)]),
    ("vit_test_half", (32, 96), [(8, 4, 12), (16, 2, 6), (32, 1, 3)]),
    ("vit_b_half", (64, 96), [(768, 2, 3), (768, 2, 3), (768, 2, 3), (256, 2, 3)]),
]


@pytest.mark.parametrize("backbone, size, expected", SHAPES)
def test_features_have_the_announced_shapes(backbone, size, expected):
    encoder = build_encoder(backbone)
    features = encoder(torch.rand(1, 3, *size) * 255)
    assert [tuple(f.shape[1:]) for f in features] == expected
    assert encoder.channels == tuple(c for c, _, _ in expected)
    assert encoder.strides == tuple(size[0] // h for _, h, _ in expected)
    assert encoder.backbone_type == backbone
    assert all(torch.isfinite(f).all() for f in features)


def test_size_that_does_not_fit_says_what_to_pad_to(small_encoder):
    with pytest.raises(ValueError, match="multiple of 32 for vit_test, got 50 x 64: pad it to 64 x 64"):
        small_encoder(torch.zeros(1, 3, 50, 64))


def test_half_sees_what_the_full_one_sees_of_an_image_half_as_large(small_encoder):
    half, full = build_encoder("vit_test_half"), build_encoder("vit_test")
    for encoder in (half, full):
        load_backbone(encoder, small_encoder.state_dict())
    image = torch.rand(1, 3, 128, 64) * 255
    for feature, wanted in zip(half(image), full(F.avg_pool2d(image, 2)), strict=True):
        torch.testing.assert_close(feature, wanted)
    assert fingerprint(half) != fingerprint(full), "features of the one are not those of the other"


@pytest.mark.parametrize("adapters", ["late", "all"])
def test_half_with_adapters_stores_what_it_says(adapters):
    encoder = build_encoder("vit_test_half", adapters=adapters)
    image = torch.rand(1, 3, 64, 128) * 255
    begun = encoder.begin(image)
    assert [(b.shape[1], 64 // b.shape[2]) for b in begun] == list(zip(encoder.stored_channels, encoder.stored_strides))
    for feature, wanted in zip(encoder.finish(begun), encoder(image), strict=True):
        torch.testing.assert_close(feature, wanted)


def test_unknown_backbone_lists_the_known_ones():
    with pytest.raises(ValueError, match=", ".join(BACKBONES)):
        build_encoder("resnet50")


def test_images_are_normalised_from_0_to_255(small_encoder):
    mean_colour = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    expected = small_encoder.backbone(torch.zeros(1, 3, 64, 64))
    for feature, wanted in zip(small_encoder(mean_colour), expected, strict=True):
        torch.testing.assert_close(feature, wanted)


# ---------------------------------------------------------------- TinyViT against plain definitions


def test_conv_norm_is_convolution_then_batch_norm():
    layer = randomised(ConvNorm(4, 6, 3, stride=2)).eval()
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), layer.bn(layer.c(x)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("shape", [(1, 8, 8, 5), (2, 12, 7, 3), (3, 5, 14, 4)])
def test_windows_are_cut_and_joined_alike_with_and_without_gradients(shape, size):
    grid, filling = torch.randn(shape), torch.randn(shape[-1])
    with torch.enable_grad():  # the ordinary operators, which are exported too
        windows = to_windows(grid, filling, size)
        joined = from_windows(windows, size, *shape[1:3])
    with torch.inference_mode():
        assert torch.equal(to_windows(grid, filling, size), windows)
        assert torch.equal(from_windows(windows, size, *shape[1:3]), joined)
    assert torch.equal(joined, grid)
    with torch.no_grad():  # after inference mode too
        assert torch.equal(to_windows(grid, filling, size), windows)


@pytest.mark.parametrize("grid", [(3, 3), (6, 3), (5, 4), (2, 2)])
def test_window_attention_is_attention_in_zero_filled_windows(grid):
    torch.manual_seed(0)
    heads, size, dim = 2, 3, 8
    layer = randomised(WindowAttention(dim, heads, size))
    x = torch.randn(1, *grid, dim)

    filled = F.pad(x, (0, 0, 0, -grid[1] % size, 0, -grid[0] % size))
    expected = torch.zeros_like(filled)
    cells = [(i, j) for i in range(size) for j in range(size)]
    for top in range(0, filled.shape[1], size):
        for left in range(0, filled.shape[2], size):
            tokens = layer.norm(filled[0, top : top + size, left : left + size].reshape(-1, dim))
            # the checkpoint's layout: query, key and value of head 0, then of head 1
            q, k, v = layer.qkv(tokens).view(-1, heads, 3, dim // heads).permute(2, 1, 0, 3)
            scores = q @ k.transpose(1, 2) / (dim // heads) ** 0.5
            for a, (i, j) in enumerate(cells):
                for b, (k_i, k_j) in enumerate(cells):
                    scores[:, a, b] += layer.attention_biases[:, abs(i - k_i) * size + abs(j - k_j)]
            out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(size, size, dim)
            expected[0, top : top + size, left : left + size] = layer.proj(out)

    torch.testing.assert_close(layer(x), expected[:, : grid[0], : grid[1]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_scripted_equals_eager_after_saving(small_encoder, size):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(small_encoder), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    image = torch.rand(2, 3, *size) * 255
    for eager, script in zip(small_encoder(image), scripted(image), strict=True):
        torch.testing.assert_close(script, eager, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name, least", [("01_1", 0.6), ("07_1", 0.6), ("09_1", 0.75)])
def test_a_clicked_nucleus_is_segmented_by_mobile_sams_own_decoder(vit_t, checkpoint, real_data, name, least):
    """All the images that were tried; measured median IoU .76, .68 and .91; a wrong encoder gives near 0."""
    image = np.array(Image.open(real_data / f"tnbc/images/{name}.png").convert("RGB"))
    labels = np.array(Image.open(real_data / f"tnbc/labels/{name}.png")).astype(np.int64)
    sam = sam_modeling()
    prompt_encoder = sam.PromptEncoder(
        embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
    )
    transformer = sam.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = sam.MaskDecoder(num_multimask_outputs=3, transformer=transformer, transformer_dim=256)
    for module, prefix in ((prompt_encoder, "prompt_encoder."), (decoder, "mask_decoder.")):
        module.load_state_dict({k[len(prefix) :]: v for k, v in checkpoint.items() if k.startswith(prefix)})

    nuclei = sorted((r for r in regionprops(labels) if r.solidity > 0.9), key=lambda r: -r.area)[:8]
    ious = []
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        embedding = vit_t(F.interpolate(pixels, (1024, 1024), mode="bilinear"))[-1]
        for nucleus in nuclei:
            y, x = nucleus.centroid
            click = torch.tensor([[[2 * x + 1, 2 * y + 1]]]), torch.ones(1, 1)
            sparse, dense = prompt_encoder(points=click, boxes=None, masks=None)
            masks, scores = decoder(
                image_embeddings=embedding,
                image_pe=prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            best = F.interpolate(masks[:, scores.argmax()][None], labels.shape, mode="bilinear")[0, 0].numpy() > 0
            truth = labels == nucleus.label
            ious.append((best & truth).sum() / (best | truth).sum())
    assert np.median(ious) > least, ious


# ---------------------------------------------------------------- weights


def test_the_published_weights_load_rounded_to_half_precision(vit_t, checkpoint):
    prefix = "image_encoder."
    published = {k[len(prefix) :]: v for k, v in checkpoint.items() if k.startswith(prefix)}
    loaded = vit_t.backbone.state_dict()
    assert {k.split(".")[0] for k in set(published) - set(loaded)} == {"norm_head", "head"}
    for name, value in loaded.items():
        wanted = published[name]
        assert torch.equal(value, wanted.half().float() if wanted.is_floating_point() else wanted), name


def test_features_and_fingerprint_are_the_same_from_a_saved_half_precision_model(vit_t):
    model = nn.Module()
    model.image_encoder = vit_t
    saved = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    again = build_encoder("vit_t")
    load_backbone(again, saved)

    image = torch.rand(1, 3, 64, 64) * 255
    assert all(torch.equal(a, b) for a, b in zip(again(image), vit_t(image), strict=True))
    assert fingerprint(again) == fingerprint(vit_t)
    # and when the whole model is restored by torch's own means
    other = nn.Module()
    other.image_encoder = build_encoder("vit_t")
    other.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(other.image_encoder(image), vit_t(image), strict=True))
    assert fingerprint(other.image_encoder) == fingerprint(vit_t)


def test_fingerprint_notices_one_changed_weight_and_another_type(small_encoder):
    changed = build_encoder("vit_test")
    load_backbone(changed, small_encoder.state_dict())
    before = fingerprint(changed)
    assert before == fingerprint(small_encoder)
    next(changed.backbone.parameters()).data.view(-1)[0] += 1
    assert fingerprint(changed) != before
    changed.backbone.load_state_dict(small_encoder.backbone.state_dict())
    changed.backbone_type = "vit_t"
    assert fingerprint(changed) != before


def _without_one(state):
    return {k: v for k, v in state.items() if k != "backbone.neck.0.weight"}


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda s: {"weight": torch.zeros(1)}, "no tensors named image_encoder"),
        (_without_one, r"not a vit_test: tensors 1 missing \(such as neck.0.weight\)"),
        (lambda s: s | {"backbone.extra": torch.zeros(1)}, r"1 unexpected \(such as extra\)"),
        (lambda s: s | {"backbone.neck.1.bias": torch.zeros(7)}, r"1 of another shape \(such as neck.1.bias\)"),
        (lambda s: s | {"backbone.neck.1.bias": torch.full((32,), 1e6)}, "not finite in half precision in neck.1.bias"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(small_encoder, spoil, message):
    before = fingerprint(small_encoder)
    with pytest.raises(ValueError, match=message):
        load_backbone(small_encoder, spoil(small_encoder.state_dict()))
    assert fingerprint(small_encoder) == before


# ---------------------------------------------------------------- frozen


def test_training_a_model_around_it_leaves_the_encoder_bit_identical():
    torch.manual_seed(0)
    model = nn.ModuleDict({"image_encoder": build_encoder("vit_test"), "head": nn.Conv2d(32, 1, 1)})
    encoder = model["image_encoder"]
    image = torch.rand(2, 3, 64, 64) * 255
    features = encoder(image)
    state = {k: v.clone() for k, v in encoder.state_dict().items()}

    model.train()
    assert model["head"].training
    assert not any(m.training for m in encoder.modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model["head"](encoder(image)[-1]).square().mean().backward()
        optimizer.step()

    assert model["head"].weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), features, strict=True))


# ---------------------------------------------------------------- precision


@pytest.mark.slow
def test_half_precision_arithmetic_gives_nearly_the_same_features_in_full(mobile_sam, real_data):
    tile = np.asarray(Image.open(real_data / "tnbc" / "images" / "01_1.png").convert("RGB"))
    image = torch.from_numpy(tile.copy()).permute(2, 0, 1)[None].float()
    exact, rounded = (load_encoder("vit_t", mobile_sam, precision=p) for p in ("float32", "bfloat16"))
    assert fingerprint(exact) == fingerprint(rounded), "the weights are the same"
    for i, (a, b) in enumerate(zip(exact(image), rounded(image))):
        assert b.dtype == torch.float32 and torch.equal(a, b) is (i == 0), "convolutions stay as they are on a CPU"
        assert (a - b).square().mean() < (0.03**2) * a.square().mean(), "within 3 % of the size of the features"


def test_unknown_precision_lists_the_known_ones():
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        build_encoder("vit_test", precision="int8")
