"""docs/settings.md says what the settings are: it is made from their table, and this sees that it still agrees.

`.venv/bin/python -m tests.unit.test_settings_reference` writes it anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from muslin.settings import SETTINGS, Setting

FILE = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """\
# The agent's settings

Made from [src/muslin/settings.py](../src/muslin/settings.py); do not edit, renew it with
`.venv/bin/python -m tests.unit.test_settings_reference`.

A setting is a flag (`--subnet-file`), an environment variable (`MUSLIN_AGENT_SUBNET_FILE`), or a key of the same name
in `/etc/muslin/agent.yaml` (`subnet-file: /run/flannel/subnet.env`; `--config FILE` or `MUSLIN_AGENT_CONFIG` names
another file, YAML or JSON). The flag comes first, then the environment, then the file, then the default; an empty
variable is as good as none. Where flanneld has a setting of the same meaning, its variable (`FLANNELD_SUBNET_FILE`)
works as well, behind ours. `muslin config show` prints each value and where it came from.

Lists take a flag several times, or commas in one text, except that a regular expression may hold a comma. What is true
or false is `--ip-masq`, `--ip-masq=false` or `--no-ip-masq`.
"""


def reference() -> str:
    """The whole document."""
    return "\n".join([HEAD, *_table()]) + "\n"


def _table() -> Iterator[str]:
    yield "| setting | default | what it says | flannel has it |"
    yield "| --- | --- | --- | --- |"
    yield from (_row(setting) for setting in SETTINGS)


def _row(setting: Setting) -> str:
    flannel = "yes" if setting.flannel else ""
    return f"| `{setting.name}` | {_default(setting)} | {_escaped(setting.help)}{_bounds(setting)} | {flannel} |"


def _default(setting: Setting) -> str:
    if setting.default in ("", ()):
        return "none"
    if isinstance(setting.default, bool):
        return f"`{str(setting.default).lower()}`"
    return f"`{', '.join(setting.default) if isinstance(setting.default, tuple) else setting.default}`"


def _bounds(setting: Setting) -> str:
    if setting.choices:
        return f" One of {', '.join(f'`{choice}`' for choice in setting.choices)}."
    if setting.minimum is None:
        return ""
    return f" From {setting.minimum}" + (f" to {setting.maximum}." if setting.maximum is not None else " on.")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def test_the_reference_of_settings_is_that_of_the_table() -> None:
    renew = f"renew it: .venv/bin/python -m {__name__}"
    assert FILE.read_text(encoding="utf-8") == reference(), renew


def test_every_setting_has_its_row_and_no_secret_a_default() -> None:
    rows = reference().splitlines()
    assert [row.split("`")[1] for row in rows if row.startswith("| `")] == [setting.name for setting in SETTINGS]
    assert all(setting.default == "" for setting in SETTINGS if setting.kind == "secret")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
