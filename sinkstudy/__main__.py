"""`python -m sinkstudy`: the command line."""

from sinkstudy.cli import main

main()
