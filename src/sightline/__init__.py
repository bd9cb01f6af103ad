"""Sightline shows what a vision network has learned.

The public names are listed in `__init__.pyi`; each module is loaded when one of its names is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
