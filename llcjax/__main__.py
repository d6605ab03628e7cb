"""`python -m llcjax` is the command line."""

from llcjax.cli import main

main()
