"""`peft plugins`: the methods, metrics, row formats and callbacks that installed packages offer."""

from __future__ import annotations

import typer

from peftcli.console.options import Json
from peftcli.console.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("plugins", short_help="List and check what other packages add.")(plugins)


def plugins(as_json: Json = False) -> None:
    """List the methods, metrics, row formats and callbacks that installed packages add, and check each.

    Example: peft plugins
    """
    from dataclasses import asdict

    from peftcli.analysis.installed_plugins import installed_plugins
    from peftcli.console.output import print_json, print_table, result_console, table
    from peftcli.errors import UserError

    found = installed_plugins()
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        rows = [[one.kind, one.name, one.package, "NO" if one.problem else "yes"] for one in found]
        print_table(result_console(), table(["kind", "name", "package", "works"], rows))
    else:
        say("no installed package adds anything; docs/plugins.md says how one can", result=True)
    if broken := list(dict.fromkeys(one.problem for one in found if one.problem)):
        raise UserError("\n".join(broken))
