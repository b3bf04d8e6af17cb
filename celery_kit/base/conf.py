"""Reading those of an app's settings that merge the kit's defaults with the user's values."""

from celery.app.utils import Settings

from celery_kit.base.types import Options

OPTIONS = "broker_transport_options"


def transport_options(conf: Settings) -> Options:
    """The options of the broker's connections: the user's, and for all others those of celery_kit/defaults.py."""
    defaults: dict[str, Options] = next((one.rooms() for one in getattr(conf, "maps", ()) if hasattr(one, "rooms")), {})
    return {**defaults.get(OPTIONS, {}), **(conf.broker_transport_options or {})}
