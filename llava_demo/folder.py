"""The folder of uploads, chosen before Gradio is imported, for one server of one user."""

import os
import stat
import tempfile
from pathlib import Path

_NAME = "llava_demo-"


def is_claimed(folder: Path) -> bool:
    """Whether a folder was made by `claim_upload_folder`: no other program keeps files there."""
    return folder.name.startswith(_NAME)


def claim_upload_folder(port: int) -> Path:
    """Have Gradio, which must not be imported yet, keep uploads in a folder of this user's and this port's server.

    Its own folder is shared by all users of a machine: it belongs to the first, and the others' servers do not start.
    If another user owns that name, the folder gets a new one.

    Raises:
        OSError: there is no place where a folder could be made.
    """
    os.umask(os.umask(0o077) & 0o077)  # whatever it takes from others, the owner must read the files
    given = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(given) / f"{_NAME}{user}-{port}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True, parents=True)
        found = folder.lstat()
        is_ours = stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == user)
    except OSError:
        is_ours = False
    if not is_ours:
        folder = Path(tempfile.mkdtemp(prefix=_NAME))
    folder.chmod(0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder
