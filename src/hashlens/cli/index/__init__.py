"""``hashlens index``: make, fill, change and check an index."""

from __future__ import annotations

import typer

from hashlens.cli.index.changing import remove_command, update_command
from hashlens.cli.index.duplicates import duplicates_command
from hashlens.cli.index.exporting import export_command
from hashlens.cli.index.filling import add_command, create_command, sync_command
from hashlens.cli.index.upkeep import compact_command, info_command, verify_command

index_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make, fill, change and check an index."
)

index_app.command("create")(create_command)
index_app.command("add")(add_command)
index_app.command("sync")(sync_command)
index_app.command("remove")(remove_command)
index_app.command("update")(update_command)
index_app.command("info")(info_command)
index_app.command("verify")(verify_command)
index_app.command("compact")(compact_command)
index_app.command("duplicates")(duplicates_command)
index_app.command("export")(export_command)
