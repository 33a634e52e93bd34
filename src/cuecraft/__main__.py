"""`python -m cuecraft` is the command line."""

from cuecraft.cli import main

main()
