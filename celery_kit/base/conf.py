"""How a part of the kit reads its app's settings where the kit's own stand behind the user's."""

from typing import Any

OPTIONS = "broker_transport_options"


def transport_options(conf: Any) -> dict[str, Any]:
    """The options for the broker's connections: those that the user names, and the room's (celery_kit/defaults.py) for all
    others.
    """
    rooms: dict[str, Any] = next((one.rooms() for one in getattr(conf, "maps", ()) if hasattr(one, "rooms")), {})
    return {**rooms.get(OPTIONS, {}), **(conf.broker_transport_options or {})}
