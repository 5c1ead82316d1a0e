"""A command whose help lists its options in groups."""

from collections.abc import Mapping
from typing import Any

import click

OTHERS = "Others"  # the group of options that no group names


class GroupedCommand(click.Command):
    """A command with option groups. groups: for each title the names of its parameters, in the order of the help."""

    def __init__(self, *args: Any, groups: Mapping[str, tuple[str, ...]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group under its title, and the rest under OTHERS."""
        titles = {name: title for title, names in self.groups.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*self.groups, OTHERS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows[titles.get(parameter.name or "", OTHERS)].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
