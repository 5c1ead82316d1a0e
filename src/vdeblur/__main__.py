"""python -m vdeblur."""

from vdeblur.cli import main

main(prog_name="vdeblur")
