"""The cursors of lists."""

import pytest

from shared.errors import Invalid
from shared.queries import cursor_of, key_of


def test_cursor_gives_its_key_again() -> None:
    key = ("2023-11-07T09:25:00Z", 12, "Kōbe")
    assert key_of(cursor_of(*key), str, int, str) == key
    assert key_of(None, str) is None
    assert set(cursor_of(*key)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "%",
        "ü",
        "AAAA",
        cursor_of("a"),
        cursor_of(1, 2),
        cursor_of("a", "b"),
        "W10",
        "bnVsbA",
        "A" * 1025,
        "W1tb" * 90,
        cursor_of("a\0", 1),
        "WyJcdWQ4MDAiLDFd",  # ["\\ud800",1]
        cursor_of("a", 2**63),
    ],
)
def test_cursor_that_no_list_gave_is_invalid(cursor: str) -> None:
    with pytest.raises(Invalid) as caught:
        key_of(cursor, str, int)
    assert caught.value.members == {
        "errors": [{"loc": ["query", "cursor"], "msg": "not a cursor of this list", "type": "value_error"}]
    }
