"""The faults. Each breaks something under load, for a while, and leaves it as it was; `proof` says what must hold."""

import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import injuries
from tests.chaos.scene import Scene
from tests.chaos.surroundings import ALWAYS

TAKE_OVER_SECONDS = 90.0
SESSION_SECONDS = 10.0
"""After so long without a heartbeat a consumer's partitions go to another one."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`healed_within`: seconds from the fault's end until everything is as it should be, generously."""

    name: str
    do: Callable[[Scene], None]
    healed_within: float = 120.0
    short: bool = False
    verify: bool = False
    """Whether `verify` is run also in the short form."""


def _nothing(scene: Scene) -> None:
    scene.lasts(2, 15)


def _kill(name: str) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        for _ in scene.times(1, 4):
            scene.go_on(0.2, 1.5)
            scene.surroundings.kill(name)
            scene.go_on(0.1, 0.5)
            scene.surroundings.start(name)
            scene.surroundings.answering(name)

    return do


def _kill_each(scene: Scene) -> None:
    """In any order, the next one as soon as the last one is started again."""
    for name in scene.random.sample(ALWAYS, len(ALWAYS)):
        scene.go_on(0.2, 1.0)
        scene.surroundings.kill(name)
        scene.surroundings.start(name)
        if name.startswith("notifications"):  # one replica of the two has to answer feeds
            scene.surroundings.answering(name)


def _terminate(scene: Scene) -> None:
    for name in ALWAYS:
        scene.go_on(0.2, 1.0)
        if (code := scene.surroundings.stop(name)) != 0:
            scene.wrong.append(f"{name} ended with {code} after SIGTERM")
        scene.surroundings.start(name)
        scene.surroundings.answering(name)


def _broker_away(scene: Scene) -> None:
    scene.surroundings.kafka.stop()
    scene.lasts(10, 90)
    scene.surroundings.start_kafka()


def _all_at_once(scene: Scene) -> None:
    """What is then sent again has to be found by processes that know of nothing."""
    scene.surroundings.kafka.kill()
    scene.go_on(1, 3)
    _kill_each(scene)
    scene.surroundings.answering()
    scene.lasts(5, 30)
    scene.surroundings.start_kafka()


def _broker_killed(scene: Scene) -> None:
    for _ in scene.times(1, 3):
        scene.surroundings.kafka.kill()
        scene.go_on(0.2, 2.0)
        scene.surroundings.start_kafka()
        scene.go_on(0.5, 3.0)


def _broker_forgets(scene: Scene) -> None:
    scene.surroundings.delete_kafkas_volume()
    scene.go_on(0.2, 2.0)
    scene.surroundings.start_kafka()
    scene.lasts(1, 10)


def _broker_forgets_at_rest(scene: Scene) -> None:
    """Nobody writes, so nothing of the services' own makes the relays send: no feed may change a byte."""
    scene.at_rest()
    [(before,)] = scene.rows("notifications", "SELECT count(*) FROM bodies")
    scene.surroundings.delete_kafkas_volume()
    scene.surroundings.start_kafka()
    left = scene.quiet(120)
    [(after,)] = scene.rows("notifications", "SELECT count(*) FROM bodies")
    scene.wrong += [f"not republished in 120 s: {one}" for one in left]
    if after != before:
        scene.wrong.append(f"{after - before} feeds changed when the past was published again")


def _database_restarted(scene: Scene) -> None:
    for _ in scene.times(1, 3):
        scene.go_on(0.2, 1.5)
        scene.surroundings.postgres.stop()
        scene.go_on(0.1, 1.5)
        scene.surroundings.postgres.start()


def _database_killed(scene: Scene) -> None:
    for _ in scene.times(1, 4):
        scene.go_on(0.2, 1.5)
        scene.surroundings.kill_postgres()
        scene.go_on(0.1, 1.5)
        scene.surroundings.postgres.start()


def _database_frozen(scene: Scene) -> None:
    """Longer than any command waits for it."""
    scene.surroundings.freeze_postgres()
    scene.go_on(14)
    scene.surroundings.freeze_postgres(signal.SIGCONT)


def _commits_slow(scene: Scene) -> None:
    injuries.slow_commits(scene)
    scene.lasts(5, 20)
    injuries.quick_commits(scene)


def _consumer_frozen(scene: Scene) -> None:
    """Its partitions go to the other replica, and then it goes on as if it still had them."""
    for name in ("notifications-2", "notifications")[: len(scene.times(1, 2))]:
        scene.go_on(0.5, 1.5)
        scene.surroundings.tell(name, signal.SIGSTOP)
        scene.go_on(SESSION_SECONDS + 3, SESSION_SECONDS + 6)
        scene.surroundings.tell(name, signal.SIGCONT)
        scene.lasts(1, 5)


def _leader_frozen(scene: Scene) -> None:
    """Its connection is cut, another one leads, and then it goes on as if it still led."""
    _with_second_relay(scene, injuries.cut_relay)


def _leader_frozen_uncut(scene: Scene) -> None:
    """Nobody cuts its connection: the lock has to be let go by itself."""
    _with_second_relay(scene, None)


def _with_second_relay(scene: Scene, cut: Callable[[Scene], None] | None) -> None:
    around = scene.surroundings
    around.start("schedule-2")
    around.answering("schedule-2")
    scene.go_on(1.5)
    around.tell("schedule", signal.SIGSTOP)
    scene.go_on(0.2, 1.0)
    if cut is not None:
        cut(scene)
    [(before,)] = scene.rows("schedule", "SELECT position FROM relay_cursor")
    moved = "SELECT position > $1 FROM relay_cursor"
    if not scene.comes_to_hold(lambda: scene.rows("schedule", moved, before)[0][0], TAKE_OVER_SECONDS):
        scene.wrong.append(f"the second relay did not take over in {TAKE_OVER_SECONDS:g} s")
    scene.lasts(2, 5)
    around.tell("schedule", signal.SIGCONT)
    scene.lasts(2, 5)
    around.retire("schedule-2")


def _one_to_four_to_one(scene: Scene) -> None:
    """Replicas of notifications come and go while each message takes its time."""
    around = scene.surroundings
    injuries.slow_handlers(scene)
    around.retire("notifications-2")
    scene.go_on(1)
    around.start("notifications-2", "notifications-3", "notifications-4")
    around.answering("notifications-2", "notifications-3", "notifications-4")
    scene.lasts(3, 20)
    around.retire("notifications-2", "notifications-3", "notifications-4")
    scene.lasts(1, 5)
    injuries.quick_handlers(scene)
    around.start("notifications-2")
    around.answering("notifications-2")


def _withheld_in_the_middle(scene: Scene) -> None:
    scene.at_rest()
    injuries.withhold(scene, then_another=True)


def _withheld_as_the_last(scene: Scene) -> None:
    scene.at_rest()
    injuries.withhold(scene, then_another=False)


FAULTS: tuple[Fault, ...] = (
    Fault(name="none, for comparison", do=_nothing),
    Fault(name="kill -9 each service in turn", do=_kill_each),
    Fault(name="broker away, each service killed -9", do=_all_at_once, short=True),
    *(Fault(name=f"kill -9 {name}, again and again", do=_kill(name)) for name in ALWAYS),
    Fault(name="SIGTERM for each service", do=_terminate),
    Fault(name="message withheld, in the middle of its key", do=_withheld_in_the_middle, healed_within=60, short=True),
    Fault(name="message withheld, the last of its key", do=_withheld_as_the_last),
    Fault(name="broker away", do=_broker_away),
    Fault(name="broker killed -9", do=_broker_killed),
    Fault(name="broker's volume deleted", do=_broker_forgets, short=True),
    Fault(name="broker's volume deleted, nobody writes", do=_broker_forgets_at_rest),
    Fault(name="PostgreSQL restarted", do=_database_restarted),
    Fault(name="PostgreSQL killed -9", do=_database_killed, short=True),
    Fault(name="PostgreSQL frozen", do=_database_frozen),
    Fault(name="PostgreSQL's disk slow", do=injuries.slow_disk),
    Fault(name="commits slow, each for another time", do=_commits_slow),
    Fault(name="consumer frozen, then a zombie", do=_consumer_frozen),
    Fault(name="relay's leader frozen and cut off", do=_leader_frozen),
    Fault(name="relay's leader frozen", do=_leader_frozen_uncut),
    Fault(name="poison on a topic", do=injuries.poison, short=True),
    Fault(name="1 to 4 to 1 replicas, slow handlers", do=_one_to_four_to_one),
    Fault(name="damaged data under verify", do=injuries.damage, short=True, verify=True),
)
