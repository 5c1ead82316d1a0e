"""`vdeblur bench --flow`: how well networks estimate motion between blurred frames, as PVDNet's Table 1 measures.

For every frame but a sequence's first, a network estimates the flow from the frame to the previous one. The *sharp*
previous frame, warped by it, is compared with the *sharp* frame: in 8 bit, 16 pixels cropped, aligned after Koehler et
al., luma (protocol pvdnet). A better flow gives a higher PSNR, whatever the network restores. The flow is estimated
four times: between both blurry frames, between both sharp ones, and between one of each.

Two rows need no network: "none" (the previous frame as it is) and "lucas-kanade" (networks/lucas_kanade.py).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vdeblur.bench.results import BenchTask, DatasetFacts
from vdeblur.datasets import pictures
from vdeblur.datasets.layouts import DataSet, Sequence
from vdeblur.errors import InputError, InterruptedRunError, ModelError, UsageError
from vdeblur.events import Talk, without_infinities
from vdeblur.measure.protocols import PROTOCOLS, Quality, mean
from vdeblur.models import cache, registry, weights
from vdeblur.models.checkpoint import fit
from vdeblur.networks import PARTS, lucas_kanade
from vdeblur.networks.basicvsrpp import BasicVSRPP
from vdeblur.networks.bimnet import BIMNet
from vdeblur.networks.cdvd_tsp import CDVDTSP
from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.networks.layers import warp
from vdeblur.networks.pvdnet import PVDNet
from vdeblur.networks.pwcnet import PWCNet
from vdeblur.networks.spynet import SPyNet
from vdeblur.restore import watch
from vdeblur.restore.tiles import pad_to

KINDS = {  # which frames the flow is estimated from: the current one, the previous one
    "blurry to blurry": (True, True),
    "sharp to sharp": (False, False),
    "blurry to sharp": (True, False),
    "sharp to blurry": (False, True),
}
PROTOCOL = PROTOCOLS["pvdnet"]
LUMA = (0.299, 0.587, 0.114)
FLOW_NETWORKS = (BasicVSRPP, CDVDTSP, FlowRNN, PVDNet)

Estimator = Callable[[Tensor, Tensor], Tensor]  # from the current and the previous frame, (B, 3, H, W) in [0, 1]


@dataclass(frozen=True)
class FlowScores:
    """One estimator's scores by kind of frames; psnr and ssim of warped sharp frames.

    seconds_per_pair: for one flow, without those of the first pair, in which a device warms up; None if it is the only
    one.
    """

    model: str
    weights: str
    weights_sha256: str
    pairs: int
    scores: dict[str, Quality]
    seconds_per_pair: float | None


@dataclass(frozen=True)
class FlowReport:
    """Everything that `bench --flow` measured."""

    dataset: DatasetFacts
    device: str
    device_name: str
    versions: dict[str, str]
    models: tuple[FlowScores, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report as docs/json.md describes it."""
        models = [
            {
                "model": row.model,
                "weights": row.weights,
                "weights_sha256": row.weights_sha256,
                "pairs": row.pairs,
                "seconds_per_pair": row.seconds_per_pair,
                "flows": {kind: {"psnr": score.psnr, "ssim_2d": score.ssim_2d} for kind, score in row.scores.items()},
            }
            for row in self.models
        ]
        facts = {"v": 1, "dataset": self.dataset.title, "dataset_details": asdict(self.dataset), "measure": "flow"}
        device = {"device": self.device, "device_name": self.device_name, "versions": self.versions}
        report: dict[str, object] = without_infinities({**facts, **device, "models": models})
        return report


def flow_models() -> list[str]:
    """Return the names of the models that estimate optical flow, and of the flow networks that start trainings."""
    entries = registry.known_models().values()
    return [
        entry.name
        for entry in entries
        if (issubclass(entry.network_class, FLOW_NETWORKS) if entry.network else entry.part in PARTS)
    ]


def check_flow_models(names: tuple[str, ...]) -> None:
    """Refuse models without optical flow.

    Raises: ModelError naming those that have some.
    """
    known = flow_models()
    for name in names:
        entry, _ = registry.choose_weights(name)
        if entry.name not in known:
            raise ModelError(f"{entry.name} estimates no optical flow", f"choose from {', '.join(known)}")


def cached_flow_models() -> tuple[str, ...]:
    """Return the flow models whose weights are on this machine."""
    found = []
    for name in flow_models():
        entry, chosen = registry.choose_weights(name)
        if chosen is not None and cache.is_cached(entry, chosen):
            found.append(name)
    return tuple(found)


def measure_flows(task: BenchTask, dataset: DataSet, device: torch.device, talk: Talk) -> Iterator[FlowScores]:
    """Yield the scores of each estimator on a data set: those of the models, then "none" and "lucas-kanade".

    Raises: InputError if no sequence has two frames, or a picture is too small; ModelError if weights are missing.
    """
    if not dataset.has_truth:
        raise UsageError(f"--flow warps sharp frames, which {dataset.title} does not have", "choose another --split")
    if all(len(sequence.pairs) < 2 for sequence in dataset.sequences):
        raise InputError(f"{dataset.title} has no sequence of two frames", "use a larger --limit")
    for name in task.models:
        entry, chosen = registry.choose_weights(name)
        digest = cache.digest_of(entry, chosen) if chosen else ""
        facts = (entry.name, chosen.name if chosen else "", digest)
        yield _measure(facts, _estimator(name, device, talk), dataset, device, talk)
    yield _measure(("none", "", ""), _none, dataset, device, talk)
    yield _measure(("lucas-kanade", "", ""), _lucas_kanade, dataset, device, talk)


@torch.inference_mode()
def _measure(
    facts: tuple[str, str, str], estimate: Estimator, dataset: DataSet, device: torch.device, talk: Talk
) -> FlowScores:
    scores: dict[str, list[Quality]] = {kind: [] for kind in KINDS}
    seconds, pairs = 0.0, 0
    total = sum(len(sequence.pairs) - 1 for sequence in dataset.sequences)
    begun = time.monotonic()
    for current, previous in (pair for sequence in dataset.sequences for pair in _pairs(sequence, device)):
        status = talk.stop()
        if status is not None:
            raise InterruptedRunError(status)
        before = previous["sharp"][None].float()
        for kind, (is_current_blurry, is_previous_blurry) in KINDS.items():
            first, second = (
                frames["blurry" if is_blurry else "sharp"][None].float() / 255
                for frames, is_blurry in ((current, is_current_blurry), (previous, is_previous_blurry))
            )
            watch.synchronize(device)  # a device may still be busy with the last score
            start = time.perf_counter()
            flow = estimate(first, second)
            watch.synchronize(device)
            if pairs:
                seconds += time.perf_counter() - start
            warped = PROTOCOL.to_8bit(warp(before, flow))
            try:
                scores[kind] += PROTOCOL.measure(warped, current["sharp"][None])
            except (ValueError, IndexError, RuntimeError) as error:
                raise InputError(f"{dataset.title}: {error}", "use larger pictures") from error
        pairs += 1
        rate = pairs / max(time.monotonic() - begun, 1e-6)
        progress = {"input": facts[0], "frame": pairs, "frames_estimate": total, "fps": round(rate, 3)}
        talk.notify("progress", {**progress, "eta_seconds": round((total - pairs) / rate, 1)})
    means = {kind: mean(values) for kind, values in scores.items()}
    return FlowScores(*facts, pairs, means, seconds / ((pairs - 1) * len(KINDS)) if pairs > 1 else None)


def _pairs(sequence: Sequence, device: torch.device) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield every frame but the first with the previous one; each frame's blurry and sharp picture, uint8."""
    previous: dict[str, Tensor] | None = None
    for pair in sequence.pairs:
        current = {kind: pictures.read_rgb(getattr(pair, kind)).to(device) for kind in ("blurry", "sharp")}
        if current["blurry"].shape != current["sharp"].shape:
            raise InputError(f"{pair.sharp} has another size than {pair.blurry}", "make the sizes of a pair equal")
        if previous is not None:
            yield current, previous
        previous = current


def _none(current: Tensor, previous: Tensor) -> Tensor:
    return current.new_zeros(len(current), 2, *current.shape[2:])


def _lucas_kanade(current: Tensor, previous: Tensor) -> Tensor:
    luma = [torch.einsum("bchw,c->bhw", frame, frame.new_tensor(LUMA))[:, None] for frame in (current, previous)]
    return lucas_kanade.flow(*luma)


def _estimator(name: str, device: torch.device, talk: Talk) -> Estimator:
    """Return the function by which a model estimates flow, in float32."""
    entry, _ = registry.choose_weights(name)
    network: torch.nn.Module
    if entry.network:
        network = weights.load_model(name, talk=talk)
    else:
        network = PARTS[entry.part]()
        network.load_state_dict(
            {key: value.float() for key, value in fit(weights.load_start(name, talk), network)[0].items()}
        )
    network = network.eval().to(device)
    if isinstance(network, PVDNet | CDVDTSP):
        part = network.bimnet if isinstance(network, PVDNet) else network.flow_net
        if part is None:
            raise ModelError(f"{name}: these weights have no optical flow to measure", "choose other weights")
        network = part
    if isinstance(network, BIMNet):
        return network.flow
    if isinstance(network, PWCNet):
        pwcnet = network
        return lambda current, previous: pwcnet(
            pwcnet.pyramid(current), pwcnet.pyramid(previous), current.shape[2], current.shape[3]
        )
    if isinstance(network, BasicVSRPP):
        return _at_a_quarter(network.spynet)
    if isinstance(network, SPyNet):
        return network
    assert isinstance(network, FlowRNN)
    return _finest_of(network)


def _at_a_quarter(spynet: SPyNet) -> Estimator:
    """Return SPyNet as BasicVSR++ uses it: on frames of a quarter of the size."""

    def estimate(current: Tensor, previous: Tensor) -> Tensor:
        height, width = current.shape[2:]
        sides = (max(height // 4, 1), max(width // 4, 1))
        quarters = (F.interpolate(frame, sides, mode="bicubic") for frame in (current, previous))
        return _enlarged(spynet(*quarters), height, width)

    return estimate


def _finest_of(network: FlowRNN) -> Estimator:
    """Return flow-rnn's flow2, at a quarter of the size, from padded frames."""

    def estimate(current: Tensor, previous: Tensor) -> Tensor:
        height, width = current.shape[2:]
        rows, columns = (-(-side // network.multiple) * network.multiple for side in (height, width))
        padded = (pad_to(frame, rows, columns, network.padding) for frame in (current, previous))
        return _enlarged(network.flows(*padded)[0].float(), rows, columns)[..., :height, :width]

    return estimate


def _enlarged(flow: Tensor, height: int, width: int) -> Tensor:
    """Return a flow (B, 2, h, w) at another size, in pixels of that size."""
    factors = flow.new_tensor((width / flow.shape[3], height / flow.shape[2]))
    return F.interpolate(flow, (height, width), mode="bilinear", align_corners=False) * factors[:, None, None]
