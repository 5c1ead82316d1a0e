"""A report of `bench --flow`: the run, and its table as a file."""

import json
from pathlib import Path

import torch

from vdeblur.bench import evaluate, flow, report
from vdeblur.bench.columns import format_number, versions_line
from vdeblur.bench.flow import KINDS, PROTOCOL, FlowReport
from vdeblur.bench.results import BenchTask
from vdeblur.bench.speed import device_name_of
from vdeblur.events import Ask, Notify, Stop, Talk
from vdeblur.restore.device import choose_device

SUFFIXES = (".md", ".json")
HEADS = ["model", "weights", *(f"{kind}, {measure}" for kind in KINDS for measure in ("dB", "SSIM")), "pairs", "s/pair"]


def run_flow_bench(
    task: BenchTask, reports: tuple[Path, ...], notify: Notify, ask: Ask | None, stop: Stop
) -> FlowReport:
    """Measure the flow of the task's models on its data set, and write the reports; see flow.py.

    Raises: VdeblurError.
    """
    for path in reports:
        report.check_report(path, SUFFIXES, "a report of flow")
    flow.check_flow_models(task.models)
    talk = Talk(task.offline, task.yes, notify, ask, stop)
    dataset = evaluate.open_for(task, PROTOCOL, talk)
    facts = evaluate.dataset_facts(dataset)
    device: torch.device = choose_device(task.device)
    found = FlowReport(
        dataset=facts,
        device=str(device),
        device_name=device_name_of(device),
        versions=evaluate.versions(),
        models=tuple(flow.measure_flows(task, dataset, device, talk)),
    )
    for path in reports:
        is_text = path.suffix.lower() == ".md"
        report.write_text(flows_as_markdown(found) if is_text else json.dumps(found.to_json(), indent=1) + "\n", path)
    return found


def flow_rows(found: FlowReport) -> list[list[str]]:
    """Return the cells below HEADS, a row for each model."""
    return [
        [
            row.model,
            row.weights,
            *(
                format_number(value, form)
                for score in row.scores.values()
                for value, form in ((score.psnr, ".2f"), (score.ssim_2d, ".4f"))
            ),
            str(row.pairs),
            format_number(row.seconds_per_pair, ".3g"),
        ]
        for row in found.models
    ]


def flow_protocol() -> str:
    """Return in one line how flows are measured."""
    return (
        "the sharp previous frame, warped by the flow from a frame to the previous one, against the sharp frame; "
        "without the first of each sequence, 16 px cropped, aligned (Koehler), luma, SSIM 2D, fp32"
    )


def flows_as_markdown(found: FlowReport) -> str:
    """Return the table to paste into a README."""
    about = found.dataset
    facts = [
        f"- Protocol: {flow_protocol()}",
        f"- Data: {report.markdown_text(f'{about.split}, {about.blur}, {about.sequences} sequences')}",
        f"- Device: {report.markdown_text(f'{found.device} ({found.device_name})')}",
        f"- Versions: {versions_line(found.versions)}",
    ]
    title = f"**{report.markdown_text(about.title)}**"
    return "\n\n".join([title, "\n".join(facts), report.markdown_table(HEADS, flow_rows(found))]) + "\n"
