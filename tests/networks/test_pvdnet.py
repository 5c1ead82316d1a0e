"""PVDNet: parity with its reference, the pixel volume's definition, and every size of frame."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import parity, recipe
from tests.networks.test_networks import moving_clip, run
from tests.parity import PARITY, Case
from vdeblur.networks.bimnet import BIMNet
from vdeblur.networks.pvdnet import PVDNet, gray_of, pixel_volume
from vdeblur.restore import device, streams, tiles
from vdeblur.train import losses

LARGE = {"channels": 192, "blocks": 24}
VARIANTS = {"manifest.json": {}, "manifest-large.json": LARGE}


CASES = [case for case in parity.cases() if case.folder == "pvdnet"]


def build(facts: dict[str, Any]) -> PVDNet:
    """Return the network with a case's drawn weights."""
    network = PVDNet(**VARIANTS[facts["manifest"]])
    drawn = recipe.state_dict(recipe.load_manifest(PARITY / "pvdnet" / facts["manifest"]), facts["weights_seed"])
    names = {name: f"module.{network.official_name(name)}" for name in network.state_dict()}
    network.load_state_dict({name: torch.from_numpy(drawn[official]) for name, official in names.items()})
    device.place(network.eval(), torch.device("cpu"), "fp32")
    return network


def recorder(seen: dict[str, list[Tensor]], name: str):
    """Return a hook that keeps a module's outputs."""

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.setdefault(name, []).append(output)

    return keep


def assert_near(found: Tensor, stored: np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(found, torch.from_numpy(stored), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", parity.each(CASES))
def test_parity(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    network, clip = build(case.facts), parity.as_tensor(case.frames())[None]
    seen: dict[str, list[Tensor]] = {}
    parts = {"pvd_d0_ch0_3": "level_1", "pvd_temp_ch0_3": "level_3", "pvd_rbend_ch0_3": "blocks_end"}
    parts |= {"bim_feat1_curr_ch0_3": "bimnet.features.level_1", "bim_feat6_curr_ch0_3": "bimnet.features.level_6"}
    steps = {"match": "matching", "sub": "subpixel", "reg": "regularization"}
    parts |= {f"bim_{s}_level{n}": f"bimnet.{steps[s]}.{n - 2}" for s in steps for n in range(2, 7)}
    for key, part in parts.items():
        network.get_submodule(part).register_forward_hook(recorder(seen, key))
    match, align = network.bimnet.match, network.align

    def matching(*pyramids: Any) -> Tensor:
        seen.setdefault("flow", []).append(match(*pyramids))
        return seen["flow"][-1]

    def aligning(*given: Any) -> Any:
        result = align(*given)
        seen.setdefault("pv_frame1", []).append(result[0])
        return result

    monkeypatch.setattr(network.bimnet, "match", matching)
    monkeypatch.setattr(network, "align", aligning)
    restored = run(network, clip)
    assert_near(restored[0].permute(0, 2, 3, 1), case.output(), case.tolerance)
    stored = case.steps()
    if stored:
        assert_near(torch.cat(seen["flow"]), stored["flow"], case.facts["tolerance"]["flow_max_abs_px"])
    for key in stored.keys() - {"flow", "flow_0_1"}:
        assert_near(seen[key][1][0, : len(stored[key])], stored[key], case.tolerance)
    assert len(seen["bim_feat1_curr_ch0_3"]) == clip.shape[1], "features of a frame are computed once"


@pytest.mark.parametrize("manifest", sorted(VARIANTS))
def test_every_official_tensor_is_one_of_ours(manifest: str) -> None:
    keys = recipe.load_manifest(PARITY / "pvdnet" / manifest)["keys"]
    network = PVDNet(**VARIANTS[manifest])
    ours = {f"module.{network.official_name(name)}": list(value.shape) for name, value in network.state_dict().items()}
    assert len(ours) == len(network.state_dict())
    assert ours == {key: facts["shape"] for key, facts in keys.items()}
    flow = {BIMNet.official_name(name) for name in network.bimnet.state_dict()}
    assert flow == {key.removeprefix("module.BIMNet.") for key in keys if key.startswith("module.BIMNet.")}


def test_parameters_are_as_many_as_published() -> None:
    def count(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    assert count(PVDNet()) == 10_514_548
    assert count(PVDNet(**LARGE)) == 23_361_780
    assert count(BIMNet()) == 5_381_969


def literal_volume(previous: np.ndarray, current: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """One frame's volume from planes (H, W), as it is defined, value by value."""
    height, width = previous.shape
    volume = np.zeros((25, height, width), np.float32)
    for i in range(-2, 3):
        for j in range(-2, 3):
            for y in range(height):
                for x in range(width):
                    from_x, from_y = x - i, y - j
                    if not (0 <= from_x < width and 0 <= from_y < height):
                        continue
                    to_x = int(from_x + flow[0, from_y, from_x]) + i  # int() truncates toward zero
                    to_y = int(from_y + flow[1, from_y, from_x]) + j
                    outside = to_x <= 0 or to_x >= width - 1 or to_y <= 0 or to_y >= height - 1
                    volume[5 * (i + 2) + j + 2, y, x] = current[y, x] if outside else previous[to_y, to_x]
    return volume


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (9, 14)])
@pytest.mark.parametrize("reach", [0.3, 3.0, 40.0])
def test_the_pixel_volume_is_as_defined(size: tuple[int, int], reach: float) -> None:
    torch.manual_seed(3)
    previous, current = torch.rand(2, 3, 1, *size).unbind(0)
    flow = torch.randn(3, 2, *size) * reach
    flow[1] = flow[1].round()  # exactly onto pixels, borders among them
    volume = pixel_volume(previous, current, flow)
    for found, *given in zip(volume, previous[:, 0], current[:, 0], flow, strict=True):
        np.testing.assert_array_equal(found.numpy(), literal_volume(*(plane.numpy() for plane in given)))


def test_the_pixel_volume_of_broken_motion_is_the_current_frame() -> None:
    """Flow that is no number, or beyond what an integer holds, points outside like any other that is too long."""
    previous, current = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    for broken in (float("nan"), float("inf"), -float("inf"), 1e30, -1e30):
        volume = pixel_volume(previous, current, torch.full((1, 2, 8, 8), broken))
        assert (volume[:, :, 2:-2, 2:-2] == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 50), (31, 33), (37, 70)])
def test_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network, clip = PVDNet(16, 1).eval(), torch.rand(2, 2, 3, *size)
    restored = run(network, clip)
    assert restored.shape == clip.shape
    assert restored.isfinite().all()
    assert not torch.equal(restored, clip)


def test_flow_beyond_a_multiple_of_32_is_zero() -> None:
    torch.manual_seed(0)
    network = BIMNet().eval()
    current, previous = torch.rand(2, 1, 3, 68, 72).unbind(0)
    with torch.inference_mode():
        flow = network.flow(current, previous)
        part = network.flow(current[..., :64, :64], previous[..., :64, :64])
        assert torch.equal(flow[..., :64, :64], part)
        assert part.any()
        assert not flow[..., 64:, :].any()
        assert not flow[..., 64:].any()
        # What is too small for that is continued instead.
        assert network.flow(current[..., :20, :], previous[..., :20, :])[..., :64].any()


def test_a_clip_of_one_frame_stands_in_for_all_that_is_missing() -> None:
    torch.manual_seed(0)
    network, frame = PVDNet(16, 1).eval(), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        volume, _ = network.align(frame, frame, None)
        assert torch.equal(run(network, frame[:, None])[:, 0], network(volume, frame, frame, frame))
        gray = gray_of(frame)
        flow = network.bimnet.flow(frame, frame)
        assert flow.any(), "motion is estimated even so"
        assert torch.equal(volume, pixel_volume(gray, gray, flow))


def test_a_whole_frames_motion_serves_its_tiles() -> None:
    """Tiles differ only through the U-net's own borders, and the difference does not grow from frame to frame."""
    torch.manual_seed(0)
    network, clip = PVDNet().eval(), moving_clip(4, 64, 320)
    expected = run(network, clip)
    plan = tiles.cut_tiles(64, 320, (64, 192), network.overlap, tiles.TileNeeds(network.multiple))
    assert plan.count == 2
    with torch.inference_mode():
        cut = torch.stack(list(streams.stream(network, iter(clip.unbind(1)), plan)), 1)
    error, change = (cut - expected).abs(), (expected - clip).abs()
    # Measured with these weights: up to 2.4 % of the largest change, 0.36 % on average, and no more in later frames.
    assert (error.amax((0, 2, 3, 4)) < 0.04 * change.max()).all()
    assert (error.mean((0, 2, 3, 4)) < 0.006 * change.mean()).all()
    # The tiles share columns 128 to 191; columns far from those do not depend on the cut.
    far = torch.cat((error[..., :96], error[..., 224:]), -1)
    assert far.max() < 1e-4 * change.max()


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.bfloat16, 0.015), pytest.param(torch.float16, 0.002, marks=pytest.mark.slow)]
)
def test_half_precision_moves_no_pixel_of_the_volume(dtype: torch.dtype, share: float) -> None:
    """Motion stays exact, so errors are the U-net's alone: 0.008 and 0.0009 of the change in every frame."""
    case = CASES[0]
    clip = parity.as_tensor(case.frames())[None]
    exact = run(build(case.facts), clip)
    half = run(build(case.facts).to_precision(dtype), clip)
    assert ((half - exact).abs().mean((0, 2, 3, 4)) < share * (exact - clip).abs().mean()).all()
    assert (half - exact).abs().max() < 0.03 * (exact - clip).abs().max()


def test_gradients_reach_all_of_bimnet_through_a_flow_loss() -> None:
    torch.manual_seed(0)
    network, clip = BIMNet(), moving_clip(2, 64, 64)
    flow = network.flow(clip[:, 1], clip[:, 0])
    losses.motion_error(flow, clip[:, 1], clip[:, 0]).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_motion_that_is_right_has_no_error() -> None:
    clip = moving_clip(2, 24, 40)
    flow = torch.zeros(1, 2, 24, 40)
    flow[:, 0] = 3  # the texture pans to the left: each point was 3 pixels further right
    assert losses.motion_error(flow, clip[:, 1], clip[:, 0]) < 1e-10
    assert losses.motion_error(-flow, clip[:, 1], clip[:, 0]) > 1e-4


def training_frames(facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the training case's sharp and blurry frames, each (4, 3, H, W) in [0, 1]."""
    drawn = torch.from_numpy(recipe.frames(**facts["frames"])).permute(0, 3, 1, 2).double()
    blurry = torch.stack([drawn[t - 1 : t + 2].mean(0).round() for t in range(1, 5)])
    return drawn[1:5].float() / 255, blurry.float() / 255


def gradient_norm(*modules: nn.Module) -> float:
    gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def test_training_parity() -> None:
    case = json.loads((PARITY / "pvdnet" / "case-train.json").read_text())
    near = {"rel": case["tolerance"]["relative"]}
    network = build(case).train()
    sharp, blurry = (frames[:, None] for frames in training_frames(case))
    parts = {"moduleFeatures": "features", "moduleMatching": "matching", "moduleSubpixel": "subpixel"}
    parts["moduleRegularization"] = "regularization"

    # The U-net alone, BIMNet frozen: three steps from the beginning of a clip
    restored, seen = blurry[0], None
    for t, expected in enumerate(case["expected"]["fixed_bimnet_sequence"]):
        network.zero_grad()
        volume, seen = network.align(restored, blurry[t], seen)
        output = network(volume, blurry[max(t - 1, 0)], blurry[t], blurry[t + 1])
        loss = 4 * (output - sharp[t]).square().mean()  # the reference's pictures are in [-1, 1]
        loss.backward()
        assert loss.item() == pytest.approx(expected["mse_loss"], **near)
        assert 2 * (output - sharp[t]).abs().mean().item() == pytest.approx(expected["l1_loss"], **near)
        assert gradient_norm(network) == pytest.approx(expected["grad_norm_before_clip"], **near)
        restored = output.detach()

    # Both at once
    network.zero_grad()
    network.bimnet.requires_grad_(True)
    _, seen = network.align(blurry[0], blurry[0], None)
    volume, _ = network.align(blurry[0], blurry[1], seen)
    image = 4 * (network(volume, blurry[0], blurry[1], blurry[2]) - sharp[1]).square().mean()
    image.backward()
    assert all(parameter.grad is None for parameter in network.bimnet.parameters())
    kinds = {"b": blurry, "s": sharp}
    found = {
        f"flow_{before}{now}": losses.motion_error(
            network.bimnet.flow(kinds[now][1], kinds[before][0]), sharp[1], sharp[0]
        )
        for before in kinds
        for now in kinds
    }
    found["flow"] = torch.stack(list(found.values())).mean()
    found["flow"].backward()
    found |= {"image": image, "total": image + found["flow"]}
    expected = case["expected"]["joint_step"]
    assert {key: value.item() for key, value in found.items()} == pytest.approx(expected["losses"], **near)
    bimnet = network.bimnet
    norms = {key: gradient_norm(bimnet.get_submodule(part)) for key, part in parts.items()}
    norms["PVDNet"] = gradient_norm(*(module for name, module in network.named_children() if name != "bimnet"))
    norms["all"] = gradient_norm(network)
    assert norms == pytest.approx(expected["grad_norms"], **near)
