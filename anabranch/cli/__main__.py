"""Lets `python -m anabranch.cli` stand for the `anabranch` command."""

from anabranch.cli import main

main(prog_name="anabranch")
