"""`python -m octoserve` is the `octoserve` command."""

from octoserve.cli.main import main

main()
