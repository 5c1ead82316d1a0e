"""Kinds of options that several commands have."""

import click


class KeyValue(click.ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, str]:
        """Give both."""
        if isinstance(value, tuple):
            return value
        key, sign, rest = value.partition("=")
        if not key or not sign:
            self.fail(f"{value!r} is not KEY=VALUE", param, context)
        return key, rest
