"""One application on real processes for each module of these tests, with a gateway of its own: what one has killed, another need
not wait for. Each test leaves it whole."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import httpx2
import pytest

from tests.support.gateways import Gateway, served
from tests.support.operated import Operated, operated


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Generator[Operated]:
    with operated("gateway-shop", tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture(scope="module")
def gateway(shop: Operated) -> Generator[Gateway]:
    with served(shop.app, shop.log) as gateway:
        yield gateway


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx2.Client]:
    """A client of it."""
    with gateway.client() as client:
        yield client
