"""``muslin completion``: the script that makes a shell complete our verbs, options and names."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  source <(muslin completion bash)
    zsh:   source <(muslin completion zsh)
    fish:  muslin completion fish | source
    """
    from click.shell_completion import get_completion_class

    from muslin.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "muslin", "_MUSLIN_COMPLETE").source())
