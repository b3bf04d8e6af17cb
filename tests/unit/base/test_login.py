"""Whom the kit's pages let in, and how fast a password can be guessed."""

from base64 import b64encode

import pytest

from celery_kit.base import login
from celery_kit.base.login import ADDRESSES, COUNTED, FREE, LONGEST, Login, header

RIGHT = header("kit", "right")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(clock: Clock) -> Login:
    return Login("kit", "right", clock)


def status(door: Login, given: str | None, address: str = "a") -> int:
    refused = door.refusal(address, given)
    return refused.status if refused else 200


def guess(door: Login, number: object, address: str = "a") -> int:
    return status(door, header("kit", f"wrong {number}"), address)


@pytest.mark.parametrize(
    "given",
    [
        None, "", "Basic", "Basic ", "Basic !", "Basic éé", "Bearer cmlnaHQ=", "kit:right", f"{RIGHT} ",
        header("kit", ""), header("kit", "Right"), header("", "right"), header("kit", "right "), header("kit:right", ""),
        f"Basic {b64encode(b'kit').decode()}",
    ],
)  # fmt: skip
def test_nothing_but_user_and_password_is_let_in(door: Login, given: str | None) -> None:
    refused = door.refusal("a", given)
    assert refused and refused.status == 401 and refused.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_user_and_password_are_let_in() -> None:
    for password in ("right", "a:b", "päß,$", "x" * 200):
        assert status(Login("kit", password), header("kit", password)) == 200
    assert status(Login("kit", "right"), RIGHT.replace("Basic", "basic")) == 200


def test_each_further_guess_waits_longer_up_to_a_bound(door: Login, clock: Clock) -> None:
    waits = []
    for number in range(FREE + 6):
        assert guess(door, number) == 401
        clock.now += 0.001
        refused = door.refusal("a", RIGHT)
        waits.append(int(refused.headers["Retry-After"]) if refused else 0)
        clock.now += waits[-1]
    assert waits == [0] * (FREE - 1) + [1, 2, 4, 8, 8, 8, 8]


def test_who_guesses_without_end_gets_few_looks_in_a_minute(door: Login, clock: Clock) -> None:
    """At 100 guesses a second, for ten minutes."""
    looked = 0
    for number in range(60_000):
        looked += guess(door, number) == 401
        clock.now += 0.01
    assert looked <= 10 * (FREE + 3 + COUNTED / LONGEST)


def test_the_right_password_waits_no_longer_than_the_bound(door: Login, clock: Clock) -> None:
    for number in range(1_000):
        guess(door, number)
        clock.now += 0.1
    clock.now += LONGEST
    assert status(door, RIGHT) == 200


def test_a_guess_during_the_wait_is_not_looked_at_and_makes_it_no_longer(door: Login, clock: Clock) -> None:
    for number in range(FREE):
        guess(door, number)
    assert status(door, RIGHT) == guess(door, "another") == 429
    clock.now += 1.0
    assert status(door, RIGHT) == 200


def test_a_page_that_sends_an_old_password_again_and_again_counts_once(door: Login, clock: Clock) -> None:
    for _ in range(1_000):
        assert guess(door, "old") == 401
        assert status(door, RIGHT) == 200
        clock.now += 1.0


def test_a_request_without_a_password_is_no_guess(door: Login) -> None:
    """A browser's first one never has one."""
    for _ in range(100):
        assert status(door, None) == 401
    assert status(door, RIGHT) == 200


def test_one_address_does_not_slow_another(door: Login) -> None:
    for number in range(FREE + 1):
        guess(door, number)
    assert status(door, RIGHT) == 429 and status(door, RIGHT, "b") == 200


def test_a_right_password_does_not_hide_the_wrong_ones(door: Login, clock: Clock) -> None:
    """Or who guesses beside a page that asks by itself would never wait."""
    for number in range(FREE - 1):
        guess(door, number)
        assert status(door, RIGHT) == 200
    guess(door, "last")
    assert guess(door, "more") == 429


def test_its_memory_is_bounded(door: Login, clock: Clock) -> None:
    for number in range(3 * ADDRESSES):
        guess(door, number, f"address {number}")
    assert len(door._wrong) == ADDRESSES
    clock.now += COUNTED
    guess(door, "new")
    assert guess(door, 0, "address 0") == 401


def test_headers_forbid_frames_and_other_sites() -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in login.HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert login.HEADERS["X-Frame-Options"] == "deny" and login.HEADERS["X-Content-Type-Options"] == "nosniff"
