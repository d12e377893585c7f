"""The web page: who may ask, what is kept, what it shows."""

from captioning.serving.server import serve
from captioning.serving.uploads import Limits
