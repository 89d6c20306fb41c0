from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet
from scripts.errors import DataError
from scripts.networks.ama_sam import AMASAM
from scripts.networks.baselines import SAMMaskDecoder, UNetDecoder
from scripts.networks.hr_decoder import HRDecoder
from scripts.networks.sam_encoders import build_encoder, sam_modeling

BASELINES = ("unet", "quarter_resolution", "sam_decoder")
CHANNELS, STRIDES = (8, 12, 32), (4, 8, 16)


def features_of(image: torch.Tensor) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    b, _, h, w = image.shape
    return [torch.randn(b, c, h // s, w // s, generator=generator) for c, s in zip(CHANNELS, STRIDES)]


def build(baseline: str, out_channels: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    if baseline == "unet":
        return UNetDecoder(CHANNELS, STRIDES, out_channels=out_channels, widths=(4, 4, 8, 8, 16, 4))
    if baseline == "quarter_resolution":
        return HRDecoder(CHANNELS, STRIDES, size="quarter", out_channels=out_channels)
    return SAMMaskDecoder(CHANNELS, STRIDES, out_channels=out_channels)


@pytest.mark.parametrize("out_channels", [1, 2])
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_keeps_the_decoders_interface_and_trains_as_a_whole(baseline, out_channels):
    decoder = build(baseline, out_channels)
    image = torch.rand(2, 3, 64, 96) * 255
    logits, aligned = decoder(features_of(image), image)
    assert logits.shape == (2, out_channels, 64, 96) and decoder.out_channels == out_channels
    assert aligned.shape[:2] == (2, decoder.aligned_channels)
    (logits.square().mean() + aligned.square().mean()).backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None], "a parameter that nothing trains"


@pytest.mark.parametrize("baseline", BASELINES)
def test_alignment_can_act_on_a_baseline_sample_by_sample(baseline):
    """Trainable weights lie before the aligned features, and samples do not mix, which CGRL needs."""
    decoder = build(baseline)
    image = torch.rand(2, 3, 64, 64) * 255
    features = [f.requires_grad_() for f in features_of(image)]
    image.requires_grad_()
    _, aligned = decoder(features, image)
    aligned[0].square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in decoder.parameters())
    reached = [x.grad for x in (image, *features) if x.grad is not None]
    assert any(g[0].any() for g in reached) and not any(g[1].any() for g in reached)


def test_the_unet_is_monais():
    decoder, image = build("unet"), torch.rand(1, 3, 64, 64) * 255
    assert isinstance(decoder.unet, BasicUNet)
    squares = F.pixel_unshuffle(image / 127.5 - 1, 2)
    torch.testing.assert_close(decoder([], image)[0], F.pixel_shuffle(decoder.unet(squares), 2))


def test_size_quarter_is_the_standard_hr_decoder_up_to_stride_4():
    """The same weights give the same aligned features; the rest is interpolated, blind to the image."""
    hr = HRDecoder(CHANNELS, STRIDES, size="standard", aligned_stride=4)
    quarter = HRDecoder(CHANNELS, STRIDES, size="quarter", aligned_stride=4)
    trunk = {k: v for k, v in hr.state_dict().items() if k in quarter.state_dict() and not k.startswith("head.")}
    missing, unexpected = quarter.load_state_dict(trunk, strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    image = torch.rand(1, 3, 64, 64) * 255
    logits, aligned = quarter(features_of(image), image)
    torch.testing.assert_close(aligned, hr(features_of(image), image)[1])
    assert torch.equal(logits, quarter(features_of(image), 255 - image)[0])
    coarse = quarter.head(aligned)
    torch.testing.assert_close(logits, F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=False))


def test_sams_mask_decoder_computes_what_sam_computes():
    """The batch of images equals SAM's own predict_masks, run on each image with an empty prompt."""
    decoder, image = build("sam_decoder"), torch.rand(2, 3, 64, 96) * 255
    features = features_of(image)
    with torch.no_grad():
        decoder.no_prompt.normal_()
        logits, _ = decoder(features, image)
        modeling = sam_modeling()
        prompts = modeling.PromptEncoder(
            embed_dim=32, image_embedding_size=(4, 6), input_image_size=(64, 96), mask_in_chans=16
        )
        prompts.pe_layer.positional_encoding_gaussian_matrix.copy_(decoder.frequencies)
        prompts.no_mask_embed.weight.copy_(decoder.no_prompt.flatten()[None])
        sparse, dense = prompts(points=None, boxes=None, masks=None)
        decoder.decoder.iou_prediction_head = torch.nn.Identity()
        for i in range(2):
            masks, _ = decoder.decoder.predict_masks(features[-1][i : i + 1], prompts.get_dense_pe(), sparse, dense)
            expected = F.interpolate(masks, (64, 96), mode="bilinear", align_corners=False)
            torch.testing.assert_close(logits[i : i + 1], expected, atol=1e-5, rtol=1e-4)


def test_sams_mask_decoder_starts_with_sams_weights(tmp_path):
    """A file laid out as segment-anything's own: three masks and one more, quality head, prompt encoder."""
    modeling = sam_modeling()
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=256, num_heads=8)
    sam = torch.nn.ModuleDict(
        {
            "mask_decoder": modeling.MaskDecoder(transformer_dim=32, transformer=transformer),
            "prompt_encoder": modeling.PromptEncoder(
                embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16
            ),
        }
    )
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    # with all of SAM's masks: tokens attend to each other, so fewer would give other masks
    decoder = SAMMaskDecoder(CHANNELS, STRIDES, out_channels=4, checkpoint=tmp_path / "sam.pth")
    image = torch.rand(1, 3, 64, 64) * 255
    features = features_of(image)
    with torch.no_grad():
        prompts = sam["prompt_encoder"]
        sparse, dense = prompts(points=None, boxes=None, masks=None)
        masks, _ = sam["mask_decoder"].predict_masks(features[-1], prompts.get_dense_pe(), sparse, dense)
        expected = F.interpolate(masks, (64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(decoder(features, image)[0], expected, atol=1e-5, rtol=1e-4)
    torch.save({"image_encoder.x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="other.pth.*no SAM decoder.*whole SAM"):
        SAMMaskDecoder(CHANNELS, STRIDES, checkpoint=tmp_path / "other.pth")


def test_sams_mask_decoder_starts_with_the_real_weights(mobile_sam):
    encoder = build_encoder("vit_t")
    decoder = SAMMaskDecoder(encoder.channels, encoder.strides, checkpoint=mobile_sam)
    theirs = torch.load(mobile_sam, map_location="cpu", weights_only=True)["mask_decoder.mask_tokens.weight"]
    assert torch.equal(decoder.decoder.mask_tokens.weight.detach(), theirs[:2])


def test_sams_mask_decoder_tells_which_features_it_needs():
    with pytest.raises(ValueError, match="stride 8 and 12 channels"):
        SAMMaskDecoder((12,), (8,))


@pytest.mark.parametrize("baseline", ["unet", "sam_decoder"])
def test_a_baselines_config_replaces_the_decoder_and_nothing_else(bundle_root, baseline):
    configs = bundle_root / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / "train.json"), str(configs / "baselines" / f"{baseline}.json")])
    parser["image_encoder"] = {"_target_": "scripts.networks.sam_encoders.build_encoder", "backbone": "vit_test"}
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, AMASAM) and type(network.decoder) is type(build(baseline))
    assert network.decoder.out_channels == 3
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    overlay = ConfigParser.load_config_file(configs / "baselines" / f"{baseline}.json")
    assert set(overlay) <= {"network_def::decoder", "decoder_checkpoint"}


def test_sams_mask_decoder_fits_the_real_encoder():
    encoder = build_encoder("vit_t")
    decoder = SAMMaskDecoder(encoder.channels, encoder.strides)
    trained = sum(p.numel() for p in decoder.parameters())
    assert 3e6 < trained < 4.5e6, "SAM's has 4.1 million, with four masks and a quality head"
