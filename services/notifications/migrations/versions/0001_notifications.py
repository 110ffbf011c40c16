"""The notifications service's tables, as first released."""

from alembic import op

from shared.tables import create_consumer_1, create_event_store_1, create_relay_1

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    "CREATE TABLE instance (one boolean PRIMARY KEY, domain text NOT NULL, renderer text NOT NULL)",
    """CREATE TABLE things (
        kind text, id uuid, trip uuid NOT NULL, sequence integer NOT NULL, document jsonb NOT NULL,
        PRIMARY KEY (kind, id)
    )""",
    "CREATE INDEX things_of_trip ON things (trip)",
    """CREATE TABLE feed_links (
        id uuid PRIMARY KEY, trip uuid NOT NULL, audience uuid NOT NULL, expires_at timestamptz NOT NULL,
        revision integer NOT NULL, thing jsonb NOT NULL, secrets jsonb NOT NULL
    )""",
    "CREATE INDEX feed_links_of_trip ON feed_links (trip, expires_at, id)",
    """CREATE TABLE fetches (
        feed_link uuid PRIMARY KEY, at timestamptz NOT NULL, client text NOT NULL, version bigint NOT NULL,
        count bigint NOT NULL
    )""",
    """CREATE TABLE audiences (
        id uuid PRIMARY KEY, trip uuid NOT NULL, delegation uuid NOT NULL, level text NOT NULL,
        alarm_seconds integer NOT NULL,
        CONSTRAINT audiences_whole UNIQUE (trip, delegation, level, alarm_seconds)
    )""",
    "CREATE TABLE marks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, trip uuid NOT NULL)",
    "CREATE INDEX marks_of_trip ON marks (trip)",
    "CREATE TABLE renderings (trip uuid PRIMARY KEY, second bigint NOT NULL)",
    """CREATE TABLE revisions (
        audience uuid, item uuid, digest bytea NOT NULL, last_modified timestamptz NOT NULL,
        PRIMARY KEY (audience, item)
    )""",
    "CREATE SEQUENCE body_places",
    """CREATE TABLE bodies (
        audience uuid, version bigint, place bigint NOT NULL DEFAULT nextval('body_places'), since timestamptz NOT NULL,
        etag text NOT NULL, compressed bytea NOT NULL,
        PRIMARY KEY (audience, version), CONSTRAINT bodies_place UNIQUE (place)
    )""",
)


def upgrade() -> None:
    create_event_store_1()
    create_relay_1()
    create_consumer_1()
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("released data goes forward only: write a new revision, or restore a backup")
