"""`python -m services up | token | migrate | topics | demo | doctor | restored`: what is started for all services."""

import argparse
import importlib
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
    chosen: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return chosen(parsed)
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        return 0 if chosen is _up else 130  # for what runs until it is told to stop, that is the way it ends


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
    for name, text in {
        "migrate": "bring the three databases to this program's schema",
        "topics": "make the topics on the bus, and refuse ones that differ from this program's",
    }.items():
        commands.add_parser(name, help=text).set_defaults(run=_job(name))
    look = commands.add_parser("doctor", help="look at everything, change nothing: 0 well, 1 warnings, 2 failures")
    look.add_argument("--data", type=_folder, help="the folder of make run; without it the environment says")
    look.add_argument("--json", action="store_true", help="for machines")
    look.set_defaults(run=_doctor)
    _add_demo(commands.add_parser("demo", help="load the demo trip into running services and print its feeds"))
    restored = commands.add_parser("restored", help="the databases were put back to an earlier point: tell all anew")
    restored.add_argument("--above", default="0", help="an epoch that is known to have been published")
    restored.add_argument(
        "--nothing-lost",
        action="store_true",
        help="no calendar saw anything later: feeds keep every byte (else each SEQUENCE goes above all that was seen)",
    )
    restored.set_defaults(run=_restored)
    return parser


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--base", default="http://127.0.0.1:8080", help="where the services answer (%(default)s)")
    demo.add_argument("--public", help="the address that is printed (the same)")
    demo.add_argument("--token-file", type=Path, required=True, help="a file that holds a planner's token")
    demo.add_argument("--kept", type=Path, required=True, help="a file that keeps what the load has to know again")
    demo.add_argument("--json", action="store_true", help="what scripts want to know, alone on standard output")
    demo.set_defaults(run=_demo)


def _job(name: str) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        try:
            getattr(importlib.import_module("services.jobs"), name)()  # loaded only for these: it takes a second
        except CannotGoOn as error:
            return _fail(f"{name}: {error}")
        return 0

    return run


def _doctor(parsed: argparse.Namespace) -> int:
    from services.doctor.looks import COULD_NOT_LOOK, doctor

    try:
        return doctor(parsed.data, as_json=parsed.json)
    except CannotGoOn as error:
        _fail(f"doctor: {error}")
    return COULD_NOT_LOOK


def _demo(parsed: argparse.Namespace) -> int:
    from services.demo.job import Demo, load_demo

    public = (parsed.public or parsed.base).rstrip("/")
    demo = Demo(base=parsed.base, public=public, token_file=parsed.token_file, kept=parsed.kept, as_json=parsed.json)
    try:
        load_demo(demo)
    except CannotGoOn as error:
        return _fail(f"demo: {error}")
    return 0


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


def _restored(parsed: argparse.Namespace) -> int:
    """Of each service in turn, whatever becomes of the others; they may have been put back to different points."""
    codes: list[int] = []
    # the epoch of notifications is what no calendar may have seen anything above; nobody else asks for it
    told = ("schedule", "participants", *(() if parsed.nothing_lost else ("notifications",)))
    for name in told:
        service = importlib.import_module(f"services.{name}.__main__")  # loaded only for this: it takes a second
        codes.append(service.run(service.PROGRAM, ["restored", "--above", parsed.above]))
    return max(codes)


def _fail(line: str) -> int:
    print(f"attache: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
