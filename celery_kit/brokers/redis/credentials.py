"""Redis' own way to ask for an account each time that a client connects, for accounts that were read from a file."""

from collections.abc import Mapping

from celery_kit.base.types import Options
from celery_kit.brokers.contract import current, is_of_a_file


def read_again(parameters: Mapping[str, object]) -> Options:
    """The parameters of a connection, with a provider in place of an account that was read from a file, which may change."""
    user, secret = (str(parameters.get(name) or "") for name in ("username", "password"))
    if not is_of_a_file(user, secret):
        return dict(parameters)
    from redis.credentials import CredentialProvider

    class FromFile(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return current(user, secret)

    return {name: value for name, value in parameters.items() if name not in ("username", "password")} | {
        "credential_provider": FromFile()
    }
