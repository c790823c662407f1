"""Who may use the REST APIs. A login on the page does not cover them: they need keys then, or are closed."""

import secrets
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from llava_demo.errors import LoginOnly, WrongKey

_BEARER = HTTPBearer(auto_error=False, description="one of the server's --api-key; any, or none, where it has none")


class Access:
    """A dependency of the routes that ask the engine.

    With keys each call needs one of them; without, and without a login, none is asked for, and one that a client sends
    since it cannot do without is not looked at.
    """

    def __init__(self, keys: Sequence[str], has_login: bool) -> None:
        self._keys = [key.encode() for key in keys]
        self._has_login = has_login

    def __call__(self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        """Let pass, before anything of the body is read.

        Raises:
            WrongKey: keys are asked for, and this is none of them.
            LoginOnly: there is a login, and no key that could stand for it.
        """
        if self._keys:
            key = given.credentials.encode() if given else b""
            if not any(secrets.compare_digest(key, known) for known in self._keys):
                raise WrongKey("The API key is missing or wrong; send it as Authorization: Bearer KEY.")
        elif self._has_login:
            raise LoginOnly(
                "This server's page asks for a login, so its REST APIs are closed until it has an --api-key."
            )
