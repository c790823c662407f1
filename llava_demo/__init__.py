"""Ask questions about pictures with LLaVA-1.5, from a browser, a Python client or the command line."""

__version__ = "0.2.0"
