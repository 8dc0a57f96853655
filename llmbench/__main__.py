"""`python -m llmbench` is the command `llmbench`."""

from llmbench.cli import main

main()
