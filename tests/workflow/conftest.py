"""One real PostgreSQL for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workflow.postgres import Cluster, cluster


@pytest.fixture(scope="module")
def postgres() -> Iterator[Cluster]:
    with cluster() as running:
        yield running
