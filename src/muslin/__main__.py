"""`python -m muslin`: the same as the `muslin` command."""

from muslin.cli.main import main

if __name__ == "__main__":
    main()
