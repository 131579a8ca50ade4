"""The flags of commands that let an organism behind a server answer."""

import argparse

from afintro.command import check_at_least
from afintro.errors import UserError
from afintro.lm.dtypes import AUTO
from afintro.servers.asking import Server
from afintro.servers.connection import KEY

ASKING = {"concurrency": Server.concurrency, "timeout": int(Server.timeout), "retries": Server.retries}


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a server, and say how it is asked.

    Args:
        parser: The parser that gets the flags.
    """
    flags = parser.add_argument_group("an organism behind a server")
    flags.add_argument(
        "--endpoint",
        metavar="URL",
        help="ask an OpenAI-compatible server, such as http://localhost:8000/v1, instead of loading a model; --model_name is the "
        f"name that the server knows, and a key is read from {KEY} in the environment",
    )
    helps = {
        "concurrency": "largest number of requests at once; fewer are sent where fewer keep the server busy",
        "timeout": "seconds without an answer after which a request is sent again",
        "retries": "further attempts at a request that failed",
    }
    for name, default in ASKING.items():
        flags.add_argument(f"--{name}", type=int, help=f"with --endpoint: {helps[name]} (default: {default})")


def server_of(args: argparse.Namespace) -> Server | None:
    """Return the server that the flags name; None for a model in this process.

    Raises:
        UserError: The URL is none, or a flag does not go with the others.
    """
    if args.endpoint is None:
        if given := next((name for name in ASKING if getattr(args, name) is not None), None):
            raise UserError("says how a server is asked", where=f"--{given}", remedy="give --endpoint, or leave it out")
        return None
    local = {"base": None, "revision": None, "dtype": AUTO}
    if given := next((name for name, default in local.items() if getattr(args, name) != default), None):
        raise UserError(
            "is for the server to decide, and has no effect with --endpoint",
            where=f"--{given}",
            remedy="leave the flag out, and start the server with what you need",
        )
    check_at_least(args, {"concurrency": 1, "timeout": 1, "retries": 0})
    return Server(args.endpoint, **{name: value for name in ASKING if (value := getattr(args, name)) is not None})
