"""`python -m services up | token`: what is started by people, for all services together."""

import argparse
import sys
from pathlib import Path

from services.demo.load_file import LoadFileWrong
from services.demo.player import LoadStopped
from services.demo.trip_fields import TripFileWrong
from services.embedded import CannotStart
from shared.settings import WrongSetting
from shared.tokens import SCOPES, WrongToken, add_token


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; what cannot be done is said in one line."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        return code
    except (CannotStart, WrongSetting, LoadStopped, LoadFileWrong, TripFileWrong, WrongToken) as error:
        print(f"attache: {error}", file=sys.stderr)
    except OSError as error:
        print(f"attache: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services", description=__doc__)
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="everything in one process, with its own PostgreSQL and the demo trip")
    up.add_argument("--port", type=int, default=8080)
    up.add_argument("--data", type=Path, default=Path(".attache"))
    up.add_argument("--bus", choices=("local", "kafka"), default="local")
    up.add_argument("--play", action="store_true", help="what happened on the trip one step a second")
    up.set_defaults(run=_up)
    token = commands.add_parser("token", help="make a bearer token, print it once and store its hash")
    token.add_argument("name")
    token.add_argument("scopes", nargs="+", metavar="scope", help=", ".join(SCOPES))
    token.add_argument("--file", type=Path, default=Path("tokens"), help="the token file (TOKENS_FILE)")
    token.set_defaults(run=_token)
    return parser


def _up(parsed: argparse.Namespace) -> int:
    from services.up import Wanted, up  # the services are loaded only to be run

    return up(Wanted(port=parsed.port, data=parsed.data, bus=parsed.bus, play=parsed.play))


def _token(parsed: argparse.Namespace) -> int:
    print(add_token(parsed.file, parsed.name, parsed.scopes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
