"""Fixtures of all tests."""

import pytest
from tiny_models import MODELS

from embspace_helpers import load


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    """Every type of model that the table of architectures knows, one after the other."""
    return request.param


@pytest.fixture(scope="session")
def twin():
    """A real model, small and bundled."""
    return load("twin-a")
