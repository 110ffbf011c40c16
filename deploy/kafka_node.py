"""A single-node Apache Kafka on 127.0.0.1 from Maven Central's jars, for machines without Docker (Java 17+, Maven).

    python -m deploy.kafka_node [--dir FOLDER] [--port 9092]

runs in the foreground until Ctrl-C or SIGTERM; the tests use the class. The data in FOLDER outlive the process.
"""

import argparse
import base64
import contextlib
import ctypes
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
JARS = HERE.parent / ".cache" / "kafka-jars"
DATA = Path(".attache") / "kafka"
PORTS = range(20000, 32000)
"""Where `free_port` looks: below those that Linux gives to outgoing connections."""
_given: set[int] = set()

# The cleaner's default buffer takes 128 MB of the heap at once, and the node then dies at random starts.
# With the default session of 9 s a killed node is back only after 11-15 s: its old registration has to lapse first.
SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=8388608
"""

LOGGING = """\
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n%throwable
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
"""


class NodeUnable(Exception):
    """Why the node cannot be had on this machine: one readable line."""


class KafkaNode:
    """One Kafka in a folder of its own. `start` from the main thread: the JVM ends with the thread that started it."""

    def __init__(
        self, folder: Path, port: int, *, jars: Path = JARS, more: str = "", users: Mapping[str, str] | None = None
    ) -> None:
        """`more` are settings over ours; `users`, with their passwords, may log in by SCRAM where a listener asks."""
        self.folder = folder
        self.port = port
        self._jars = jars
        self._more = more
        self._users = users or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What clients take as bootstrap servers."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Fetch the jars and format the storage where that was not done yet, then start; does not wait until ready."""
        if answers(self.port):
            raise NodeUnable(f"port {self.port} of 127.0.0.1 is taken: give another one, or stop what listens there")
        check_java()
        fetch_jars(self._jars)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self._write_settings()
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(settings)
        with (self.folder / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def wait_ready(self, patience: float = 90.0) -> None:
        """Until the port answers: it opens only when the node is ready. Raises `NodeUnable`."""
        deadline = time.monotonic() + patience
        while not answers(self.port):
            if self._process is None or self._process.poll() is not None:
                raise NodeUnable(f"Kafka ended while starting, see {self.folder / 'kafka.log'}")
            if time.monotonic() > deadline:
                raise NodeUnable(f"Kafka was not ready within {patience:.0f} s, see {self.folder / 'kafka.log'}")
            time.sleep(0.05)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self, patience: float = 15.0) -> None:
        """SIGTERM and wait; SIGKILL where that does not help."""
        self._end(signal.SIGTERM, patience)

    def kill(self) -> None:
        """SIGKILL: as when the machine's memory runs out."""
        self._end(signal.SIGKILL, 5.0)

    def _end(self, how: signal.Signals, patience: float) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _write_settings(self) -> Path:
        settings = self.folder / "server.properties"
        data = self.folder.resolve() / "data"
        settings.write_text(SETTINGS.format(port=self.port, controller=free_port(), data=data) + self._more)
        (self.folder / "log4j2.properties").write_text(LOGGING)
        return settings

    def _format(self, settings: Path) -> None:
        format_storage = [*self._java(), "kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", str(settings)]
        for name, password in self._users.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                format_storage += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        done = subprocess.run(format_storage, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise NodeUnable(f"Kafka's storage could not be formatted: {_last_line(done.stderr or done.stdout)}")

    def _java(self) -> list[str]:
        memory = ["-Xms64m", "-Xmx192m", "-XX:+UseSerialGC"]
        logging = f"-Dlog4j2.configurationFile={(self.folder / 'log4j2.properties').resolve()}"
        return ["java", *memory, logging, "-cp", f"{self._jars.resolve()}/*"]


def fetch_jars(folder: Path = JARS) -> None:
    """Copy the jars that deploy/kafka/pom.xml names into a folder by Maven; a folder that is whole is left alone."""
    pom = HERE / "kafka" / "pom.xml"
    mark = folder / "complete-pom.xml"
    if mark.exists() and mark.read_bytes() == pom.read_bytes():
        return
    if shutil.which("mvn") is None:
        raise NodeUnable("Maven (mvn) is not on the path: install it (Debian: maven), or use Docker for Kafka")
    shutil.rmtree(folder, ignore_errors=True)  # jars of another version beside the new ones would both be loaded
    folder.mkdir(parents=True)
    copy = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    done = subprocess.run([*copy, f"-DoutputDirectory={folder.resolve()}"], capture_output=True, text=True)
    if done.returncode:
        raise NodeUnable(f"Maven could not fetch Kafka's jars: {_first_error(done.stdout + done.stderr)}")
    shutil.copyfile(pom, mark)


def check_java() -> None:
    """Raises `NodeUnable` where there is no Java 17 or newer."""
    if shutil.which("java") is None:
        raise NodeUnable("Java is not on the path: Kafka needs Java 17 or newer (Debian: openjdk-17-jre-headless)")
    told = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < 17:
        raise NodeUnable(
            f"Kafka needs Java 17 or newer, this machine has {told.splitlines()[0] if told else 'none that answers'}"
        )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, and that no outgoing connection will be given meanwhile.

    One process is given each only once: whoever has it may not listen yet.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given:
                probe.bind(("127.0.0.1", port))
                _given.add(port)
                return port
    raise NodeUnable(f"no port of 127.0.0.1 from {PORTS.start} to {PORTS.stop - 1} is free")


def until_answers(address: str, patience: float = 60.0) -> None:
    """Until somebody accepts connections at a `host:port`. Raises `NodeUnable`."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + patience
    while not answers(int(port), host):
        if time.monotonic() > deadline:
            raise NodeUnable(f"nobody answers at {address}")
        time.sleep(0.05)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections on this port."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """The command line. 0 after Ctrl-C or SIGTERM; 1, with one line on stderr, where Kafka cannot run or ends."""
    parser = argparse.ArgumentParser(prog="python -m deploy.kafka_node", description="Apache Kafka on 127.0.0.1")
    parser.add_argument("--dir", type=Path, default=DATA, help="where the data live (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9092, help="on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--jars", type=Path, default=JARS, help="where the jars live (fetched once)")
    chosen = parser.parse_args(arguments)
    node = KafkaNode(chosen.dir, chosen.port, jars=chosen.jars)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        node.start()
        node.wait_ready()
        print(f"Kafka is ready on {node.address}, data in {node.folder}, Ctrl-C stops it", flush=True)
        while node.alive():
            time.sleep(0.2)
        raise NodeUnable(f"Kafka ended by itself, see {node.folder / 'kafka.log'}")
    except NodeUnable as unable:
        print(unable, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        node.stop()
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG: a killed test run must not leave a JVM behind. There is no such call but on Linux.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _cluster_id() -> str:
    """22 characters of base64url; one that begins with a dash would be read as an option."""
    return "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def _first_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("[ERROR]")]
    return errors[0].removeprefix("[ERROR]").strip() if errors else _last_line(text)


if __name__ == "__main__":
    sys.exit(main())
