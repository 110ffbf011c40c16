"""`python -m services up | token`: what is started by people, for all services together."""

import argparse
import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from services.embedded_server import CannotStart, end_with_parent
from services.stopping import Signals
from services.surroundings import CannotGoOn
from services.up import Wanted, up
from shared.tokens import SCOPES, WrongToken, add_token


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; what cannot be done is said in one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of places in a terminal of another alphabet
    parsed = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        return 0 if run is _up else 130  # for what runs until it is told to stop, that is the way it ends


class _Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"attache: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m services", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="everything in one process, with its own PostgreSQL and the demo trip")
    up.add_argument("--port", type=_port, default=8080, help="0 takes a free one (%(default)s)")
    up.add_argument("--data", type=_folder, default=Path(".attache"), help="the folder that holds it all (%(default)s)")
    up.add_argument("--bus", choices=("local", "kafka"), default="local", help="how messages go (%(default)s)")
    up.add_argument("--play", action="store_true", help="what happened on the trip one step a second")
    up.add_argument("--end-with-parent", action="store_true", help="stop when the program ends that started this one")
    up.set_defaults(run=_up)
    token = commands.add_parser("token", help="make a bearer token, print it once and store its hash")
    token.add_argument("name")
    token.add_argument("scopes", nargs="+", metavar="scope", help=", ".join(sorted(SCOPES)))
    token.add_argument("--file", type=Path, default=Path("tokens"), help="the token file (TOKENS_FILE)")
    token.set_defaults(run=_token)
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535, or 0 for any that is free")
    return int(text)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of a folder is needed")
    return Path(text)


def _up(parsed: argparse.Namespace) -> int:
    if parsed.end_with_parent:
        end_with_parent(signal.SIGTERM)
    with Signals() as signals:
        try:
            return up(Wanted(port=parsed.port, data=parsed.data, bus=parsed.bus, play=parsed.play), signals)
        except (CannotStart, CannotGoOn) as error:
            return _fail(str(error))


def _token(parsed: argparse.Namespace) -> int:
    try:
        print(add_token(parsed.file, parsed.name, parsed.scopes))
    except WrongToken as error:
        return _fail(str(error))
    return 0


def _fail(line: str) -> int:
    print(f"attache: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
