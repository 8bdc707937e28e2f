"""Two real hosts, where they can be made; elsewhere these tests are skipped and say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.hosts import Hosts, missing, two_hosts
from tests.support import skips

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run by `-m multinode` alone: they need root, and minutes that `make test` has not."""
    asked = "multinode" in config.option.markexpr
    reason = missing() if asked else "two hosts are tested by make test-multinode"
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.multinode)
            if reason:
                item.add_marker(skips.left_out(skips.HOSTS, reason))


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both
