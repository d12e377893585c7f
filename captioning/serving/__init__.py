"""The web page."""

from captioning.serving.server import ServerSettings, serve
