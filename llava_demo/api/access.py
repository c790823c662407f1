"""Access to the REST APIs. The page's login does not cover them: with a login they need keys, or are closed."""

import secrets
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from llava_demo.errors import LoginOnly, WrongKey

_BEARER = HTTPBearer(auto_error=False, description="One of the server's keys, --api-key.")


class Access:
    """The dependencies of the routes that ask the engine; they run before a body is read.

    If there are keys, each call needs one of them. If there is neither a key nor a login, keys are ignored: some
    clients always send one.
    """

    def __init__(self, keys: Sequence[str], has_login: bool) -> None:
        self._keys = [key.encode() for key in keys]
        self._has_login = has_login

    @property
    def dependencies(self) -> list[params.Depends]:
        """For FastAPI, which documents the key if there is one."""
        if self._keys:
            return [Depends(self.check_key)]
        return [Depends(self.refuse)] if self._has_login else []

    def check_key(self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        """Let a caller with a valid key pass.

        Raises:
            WrongKey: the key is missing or wrong.
        """
        key = given.credentials.encode() if given else b""
        if not any(secrets.compare_digest(key, known) for known in self._keys):
            raise WrongKey("The API key is missing or wrong; send it as Authorization: Bearer KEY.")

    def refuse(self) -> None:
        """Refuse every caller.

        Raises:
            LoginOnly: always.
        """
        raise LoginOnly("This server's page asks for a login, so its REST APIs are closed until it has an --api-key.")
