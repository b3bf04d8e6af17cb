"""Types of what the kit uses of its upstream packages where their stubs lack it, for annotations only.

A class here has the members in use and no others. Import it under `if TYPE_CHECKING:`, and the real one otherwise.
"""
