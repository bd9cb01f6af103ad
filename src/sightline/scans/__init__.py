"""One pass of a network over a collection of images, kept in a store."""

from .store import Scan as Scan
from .stream import scan as scan
