"""The command line: one file per command, each a parser of arguments around functions of the library."""
