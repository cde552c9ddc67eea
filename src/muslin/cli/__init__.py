"""The command line: verbs, and the only place where the rooms are wired together."""
