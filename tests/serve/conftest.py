import pytest

import inward
from tests.serve.live import chatty, live

PUZZLE = "5........3..14...62...1.....62.6...."
HOPS = "d>b a>d c>a b>f e>j f>e g>h h>i i>c j>g | a . . . . . . . ."
GRAPH = "7_15 0_7 7_8 14_5 14_11 6_11 8_4 2_1 10_0 1_14 1_4 1_6 13_3 14_13 [Q] 12 5 [R] 2"


@pytest.fixture(scope="session")
def thinkers():
    names = ("sudoku6", "huginn-hops", "prosqa", "stories-draft")
    return {name: inward.open(name) for name in names} | {"chatty": chatty()}


@pytest.fixture(scope="session")
def server(thinkers):
    """One server for all tests that leave it as it was."""
    with live(thinkers) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with server.client() as made:
        yield made
