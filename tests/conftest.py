"""What all tests share."""

import os
import socket

import pytest
import torch
from tiny_configs import MODELS

from embspace_helpers import load


@pytest.fixture(scope="session", autouse=True)
def threads():
    """One thread, unless OMP_NUM_THREADS names another number.

    Tiny models gain nothing from more, and lose a factor of ten where the machine is busy.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    """Every type of model that the table of architectures knows, one after the other."""
    return request.param


@pytest.fixture
def no_network(monkeypatch):
    """Any test that reaches for another machine fails."""

    def refuse(*_, **__):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def twin():
    """A real model, small and bundled."""
    return load("twin-a")
