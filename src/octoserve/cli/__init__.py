"""The command line: argument parsing and terminal output, one module a command group."""
