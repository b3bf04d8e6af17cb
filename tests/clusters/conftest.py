"""A clone of the project, as the tests of the commands have it."""

from tests.deploy.conftest import checkout

__all__ = ["checkout"]
