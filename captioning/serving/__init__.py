"""The web page: who may ask, and what is answered."""

from captioning.serving.server import ServerSettings, serve
