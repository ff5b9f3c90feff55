"""The command line: one file per command, each with its arguments, its call of the library and its table."""
