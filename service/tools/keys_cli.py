"""`topfive keys`: the API keys of a service."""

import sys
from pathlib import Path
from typing import Annotated

import typer

keys = typer.Typer(help="Add, list and revoke API keys.", no_args_is_help=True)

File = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="File of keys. Default: the setting keys_file."),
]


@keys.command("add")
def add(
    scopes: Annotated[
        str, typer.Option(help="What the key is for: a comma list of infer, metrics, admin.")
    ] = "infer",
    expires: Annotated[
        str, typer.Option(metavar="DAY", help="Last day of the key in UTC, such as 2027-01-31.")
    ] = "",
    images_per_s: Annotated[
        str, typer.Option(help="Maximum images per second. Default: the setting key_images_per_s.")
    ] = "",
    requests: Annotated[
        str, typer.Option(help="Maximum requests in flight. Default: the setting key_requests.")
    ] = "",
    note: Annotated[str, typer.Option(help="What or whose the key is, for the list.")] = "",
    file: File = None,
) -> None:
    """Add a key and print it. It is shown only now: the file has its hash.

    A running service accepts the key within about a second.

    Example: topfive keys add --file keys.txt --scopes infer --note 'the shop'
    """
    from service.tools import key_file

    path = key_file.named(file)
    key = key_file.add(path, key_file.NewKey(scopes, expires, images_per_s, requests, note))
    print(key, flush=True)
    print(f"added to {path}; keep the key, it is not shown again", file=sys.stderr)


@keys.command("list")
def list_keys(file: File = None) -> None:
    """Print the id, scopes, expiry, limits and note of each key.

    Example: topfive keys list --file keys.txt
    """
    from service.tools import key_file

    titles = ("id", "scopes", "expires", "images/s", "requests", "note")
    rows = [titles, *key_file.listed(key_file.named(file))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, or the whole key.")],
    file: File = None,
) -> None:
    """Remove a key. A running service refuses it within about a second.

    Example: topfive keys revoke 7f3a9c01 --file keys.txt
    """
    from service.tools import key_file

    path = key_file.named(file)
    key_file.revoke(path, key_id)
    print(f"revoked in {path}", file=sys.stderr)
