"""The entry point: groups and verbs by name, imported when they are called.

Theory of operation: start-up time is part of how a tool feels, so a verb pays for its own imports and ``--help`` for
almost none: the table below holds each verb's module and one line of help. Errors that a person can read end here,
as one sentence on stderr with what would mend it, and with the exit code of their kind. Data goes to stdout, talk to
stderr.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

import muslin
from muslin.errors import EXIT_CHECK_FAILED, EXIT_INTERRUPTED, EXIT_UNSUPPORTED, MuslinError

ENVIRONMENT_PREFIX = "MUSLIN"

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

LazyCommands = dict[str, tuple[str, str]]
"""Verb to (module:attribute, one line of help)."""


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are called, not when they are listed."""

    def __init__(self, *args: Any, lazy: LazyCommands | None = None, aliases: dict[str, str] | None = None, **kw: Any):
        super().__init__(*args, **kw)
        self.lazy = lazy or {}
        self.aliases = aliases or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of the table, which is the order of use."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        name = self.aliases.get(cmd_name, cmd_name)
        if name not in self.lazy:
            return None
        module, _, attribute = self.lazy[name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest verb named when there is none of this name."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, [*self.lazy, *self.aliases], 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"See '{ctx.command_path} --help'."
            ctx.fail(f"there is no command {name!r}. {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT_SETTINGS,
    lazy={
        "lab": (
            "muslin.cli.lab:lab",
            "Networks of containers on this machine: raise, check, explore, remove.",
        ),
        "agent": ("muslin.cli.agent:agent", "The daemon that connects this host's containers with all others'."),
        "status": ("muslin.cli.status:status", "How the agent of this host is, whom it reaches, and what is wrong."),
        "explain": (
            "muslin.cli.lab_explain:explain",
            "Tell the way of a packet through this host, and why it is this one.",
        ),
        "routes": ("muslin.cli.lab_routes:routes", "List routes as the kernel takes them, each with its type."),
        "cni": ("muslin.cli.cni:cni", "Have container runtimes connect containers through the agent."),
        "uninstall": ("muslin.cli.uninstall:uninstall", "Remove all that an agent made on this host."),
        "network": ("muslin.cli.network:network", "The network's configuration and leases, in the store."),
        "tunnel": ("muslin.cli.tunnel:tunnel", "The user-space tunnels of this host: what they have counted."),
        "config": ("muslin.cli.config:config", "The agent's settings, and where each comes from."),
        "completion": ("muslin.cli.completion:completion", "Print the completion script of a shell."),
    },
)
@click.version_option(muslin.__version__, prog_name="muslin")
def cli() -> None:
    """Container networking from scratch, out of what Linux itself provides.

    Start with: muslin lab demo
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        result = cli.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="muslin",
            standalone_mode=False,
            auto_envvar_prefix=ENVIRONMENT_PREFIX,
        )
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as help_text:
        help_text.show()
        return help_text.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"\n  see: {context.command_path} --help" if context else ""
        return _complain(f"{error.format_message()}{hint}", error.exit_code)
    except MuslinError as error:
        return _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("muslin: interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`): point stdout elsewhere, so that the exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CHECK_FAILED
    except PermissionError as error:
        return _complain(f"no permission: {error}\n  run as root, or as a user who may", EXIT_UNSUPPORTED)
    except OSError as error:
        return _complain(str(error), EXIT_CHECK_FAILED)
    return result if isinstance(result, int) else 0


def _complain(text: str, exit_code: int) -> int:
    click.echo(f"muslin: {text}", err=True)
    return exit_code


def main() -> None:
    """Run the command line and end the process."""
    sys.exit(run())
