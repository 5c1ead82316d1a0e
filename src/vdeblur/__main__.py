"""python -m vdeblur."""

from vdeblur.cli.main import main

main(prog_name="vdeblur")
