"""The options of `vdeblur bench`: those for data sets and those for --speed do not mix."""

import pytest

from vdeblur.cli import bench as cli_bench


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--speed", "--save", "x"), "--save goes with --dataset, not with --speed (leave out --save)"),
        (("--speed", "--vmaf"), "--vmaf goes with --dataset"),
        (("--speed", "--protocol", "plain"), "--protocol goes with --dataset"),
        (("--speed", "--yes"), "--yes goes with --dataset"),
        (("--dataset", "gopro", "--size", "64x48"), "--size goes with --speed, not with --dataset (leave out --size)"),
        (("--dataset", "gopro", "--repeats", "1"), "--repeats goes with --speed"),
        (("--frames", "9"), "--frames goes with --speed"),
    ],
)
def test_an_option_that_would_mean_nothing_is_refused(vdeblur, arguments: tuple[str, ...], words: str) -> None:
    result = vdeblur("bench", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_options_from_the_environment_wait_for_their_command(vdeblur, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(cli_bench, "run_speed", lambda *facts: calls.append(facts))
    monkeypatch.setenv("VDEBLUR_BENCH_SAVE", "restored")
    assert vdeblur("bench", "--speed", "--offline").exit_code == 0
    assert len(calls) == 1


def test_every_option_belongs_to_one_side_or_to_both() -> None:
    names = {parameter.name for parameter in cli_bench.bench_command.params}
    common = {"model", "report", "device", "precision", "threads", "json", "speed", "dataset", "offline"}
    assert names == common | set(cli_bench.OF_DATASET) | set(cli_bench.OF_SPEED)
    assert len(names) == len(common) + len(cli_bench.OF_DATASET) + len(cli_bench.OF_SPEED)
