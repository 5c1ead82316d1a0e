"""Files of Google Drive: by their id, or by their name in a public folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdeblur.errors import InterruptedRunError
from vdeblur.events import Talk
from vdeblur.fetch.http import ATTEMPTS, TIMEOUT_SECONDS, FetchError, guarded_requests, request_reason


def download_drive(
    facts: Mapping[str, str], target: Path, name: str, most_bytes: int, talk: Talk, fresh: bool = False
) -> bool:
    """Download a file to target, and resume an earlier download unless fresh; return whether it was resumed.

    facts: `id` of the file, or `folder` and `file`, its name there, by default target's. name: for progress.
    most_bytes: that the file can have.
    Raises: FetchError with the reason; OSError if it cannot be written.
    """
    import gdown
    import requests

    talk.check_stop()
    # In a folder of its own, because gdown chooses the name of the unfinished file.
    folder = target.with_name("drive")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    reused = any(folder.iterdir())

    def progress(done: int, total: int | None) -> None:
        if done > most_bytes:
            raise FetchError(f"the server sent more than the {most_bytes} bytes that the file can have")
        talk.show_progress(name, done, total)

    common: dict[str, Any] = {"quiet": True, "use_cookies": False, "timeout": TIMEOUT_SECONDS}
    try:
        with guarded_requests():
            file_id = facts.get("id")
            if file_id is None:
                listed: Any = gdown.download_folder(id=facts["folder"], skip_download=True, **common)
                wanted = facts.get("file", target.name)
                ids = [item.id for item in listed if Path(item.path).name == wanted]
                if len(ids) != 1:
                    raise FetchError(f"the folder holds {len(ids) or 'no'} files called {wanted}")
                file_id = ids[0]
            gdown.download(
                id=file_id,
                output=str(folder / target.name),
                resume=True,
                retries=ATTEMPTS - 1,
                progress=progress,
                **common,
            )
    except (FetchError, InterruptedRunError):
        raise
    except requests.RequestException as error:
        raise FetchError(request_reason(error)) from error
    except OSError:
        raise
    except Exception as error:  # gdown's own, and its parser's on a changed page
        raise FetchError(_drive_reason(error)) from error
    (folder / target.name).replace(target)
    shutil.rmtree(folder, ignore_errors=True)
    return reused


def _drive_reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "Too many users" in text or "many accesses" in text or "quota" in text.lower():
        return "over its quota, or no longer public"
    return text[:200] or type(error).__name__
