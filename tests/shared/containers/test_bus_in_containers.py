"""What the bus promises, on the broker and the database that Compose has."""

# ruff: noqa: F401  (tests and fixtures that run here as they are)

from tests.shared.test_bus import (
    bus,
    ground,
    kafka,
    local_engine,
    make_ground,
    producer,
    test_a_group_shares_the_partitions,
    test_a_record_is_read_as_it_was_sent,
    test_id_at_answers_the_id_of_that_one_record,
    test_kafka_tells_each_difference_of_a_topic,
    test_members_come_and_go_while_handlers_are_slow,
    test_records_of_one_key_stand_on_one_partition_in_order,
    test_topics_are_made_once_and_a_difference_is_refused,
)
