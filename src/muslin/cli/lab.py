"""``muslin lab``: the verbs of the lab, each in a module of its own."""

from __future__ import annotations

import click

from muslin.cli.main import CONTEXT_SETTINGS, LazyGroup


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT_SETTINGS,
    aliases={"deploy": "up", "destroy": "down", "list": "ls"},
    lazy={
        "demo": ("muslin.cli.lab_demo:demo", "Tell the story of all four steps, with checks, and clean up."),
        "up": ("muslin.cli.lab_up:up", "Raise a lab, repair it, or turn it into another one."),
        "check": ("muslin.cli.lab_check:check", "Prove R1, R2 and R3, pair by pair and both ways."),
        "explain": (
            "muslin.cli.lab_explain:lab_explain",
            "Tell the way of a packet, hop by hop, and why it is this one.",
        ),
        "trace": (
            "muslin.cli.lab_trace:trace",
            "Send a packet and show each link it is seen at, beside the prediction.",
        ),
        "replay": ("muslin.cli.lab_trace:replay", "Play a trace again, here or as one HTML file."),
        "capture": ("muslin.cli.lab_capture:capture", "Capture at many links into one pcapng, or as lines."),
        "routes": ("muslin.cli.lab_routes:lab_routes", "List routes as the kernel takes them, each with its type."),
        "learn": ("muslin.cli.lab_learn:learn", "A guided course through the four steps: predict, look, mend."),
        "myths": ("muslin.cli.lab_myths:myths", "Show what is said of such networks and does not hold, live."),
        "graph": ("muslin.cli.lab_graph:graph", "Draw the lab: for the terminal, as SVG or as mermaid."),
        "diagnose": ("muslin.cli.lab_break:diagnose", "Say why packets are lost or changed, and what mends it."),
        "break": ("muslin.cli.lab_break:break_", "Break the lab, to learn to find out why."),
        "heal": ("muslin.cli.lab_break:heal", "Take back what was broken, and any drift."),
        "exec": ("muslin.cli.lab_exec:exec_", "Run a command in a node or container."),
        "shell": ("muslin.cli.lab_exec:shell", "Open a shell in a node or container."),
        "inspect": ("muslin.cli.lab_show:inspect", "Show links, addresses and routes, and any drift."),
        "adopt": ("muslin.cli.lab_adopt:adopt", "Which step namespaces made by hand are, and what they lack."),
        "ls": ("muslin.cli.lab_show:ls", "List the labs on this machine."),
        "diff": ("muslin.cli.lab_show:diff", "Show only the commands that one step adds to another."),
        "export": ("muslin.cli.lab_show:export", "Print the lab as a shell script or a topology file."),
        "down": ("muslin.cli.lab_up:down", "Take a lab away, with all that runs in it."),
        "prune": ("muslin.cli.lab_up:prune", "Clear away what broken labs have left."),
    },
)
def lab() -> None:
    """Networks of containers on this machine, made of network namespaces.

    \b
    step 1   one container: a namespace and a veth
    step 2   one node: containers on a bridge
    step 3   several nodes: routes between them
    step 4   an overlay: TUN device and UDP, no routes

    A first walk:  muslin lab up --step 4;  muslin lab check;  muslin lab down

    \b
    Exit codes: 0 fine · 1 a check failed · 2 wrong usage or topology · 3 a privilege or
    kernel feature is missing · 4 warnings only · 130 interrupted. `exec` passes its
    command's own. Every option can come from the environment: MUSLIN_LAB_UP_STEP=4.
    """
