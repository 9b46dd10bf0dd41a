"""A cache at a URL: a folder that `pack` wrote, downloaded with fsspec into the user's cache directory.

    hf://datasets/ORG/NAME     https://HOST/FOLDER     s3://BUCKET/FOLDER

SHA256SUMS names the files. It is read once, and a file gets its name when its bytes match its digest. So an interrupted
call resumes with the next file, and a call that finds all of its files sends no request. Without SHA256SUMS in the
local folder it is read again, and files that differ from it are replaced.

A server is not trusted: names are those of a cache's files, and it cannot send more bytes than it says, nor than the
disk holds. Credentials are the business of fsspec's packages; nothing here reads any.
"""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs

from demkd.cache.disk import exclusive, write_durably
from demkd.cache.errors import CacheBusyError, CacheDamagedError, CacheMissingError, CacheSpaceError, CacheValueError
from demkd.cache.shards import (
    LARGEST_SUMS,
    SUMS,
    WEIGHTS,
    compute_sums,
    parse_name,
    parse_sums,
    read_sums,
    teacher_names,
)
from demkd.errors import visible_line

PACKAGES = {  # by protocol, the package that fsspec needs for it
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "s3": "s3fs",
    "gs": "gcsfs",
}
_CHUNK = 1 << 22
_SILENCE = 60  # seconds until a server that sends nothing is given up
_SECONDS_BETWEEN = 0.2


def local_folder(
    cache: str | os.PathLike[str],
    teachers: Sequence[str] | None = None,
    *,
    task: Callable[..., AbstractContextManager[Any]] | None = None,
) -> Path:
    """The folder of a cache. From a URL, what is missing of these teachers, or of all, is downloaded first.

    `task` is `Progress.task`, which shows the download.
    """
    teachers = None if teachers is None else teacher_names(teachers)
    if not (isinstance(cache, str) and "://" in cache):
        return Path(cache)
    url = cache.rstrip("/")
    called = re.sub(r"[^\w.-]+", "-", url.rpartition("/")[2])[:40]
    place = f"{called}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    folder = platformdirs.user_cache_path("demkd") / "caches" / place
    if (folder / SUMS).exists() and not _missing(url, folder, read_sums(folder), teachers):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(CacheBusyError), exclusive(folder / "download"):  # another process may download it
            _download(url, folder, teachers, task)
            return folder
        time.sleep(_SECONDS_BETWEEN)


def _missing(url: str, folder: Path, sums: Mapping[str, str], teachers: Sequence[str] | None) -> list[str]:
    """The files of some teachers, and the weights, that are not there yet."""
    teacher_of = {name: parsed[0] for name in sums if (parsed := parse_name(name))}
    for teacher in teachers or ():
        if teacher not in teacher_of.values():
            have = ", ".join(dict.fromkeys(teacher_of.values()))
            raise CacheMissingError(f"there is no teacher {teacher!r} at {url}; it has {have}")
    wanted = [name for name in sums if teachers is None or name == WEIGHTS or teacher_of.get(name) in teachers]
    return [name for name in wanted if not (folder / name).exists()]


def _download(
    url: str, folder: Path, teachers: Sequence[str] | None, task: Callable[..., AbstractContextManager[Any]] | None
) -> None:
    system = _file_system(url)
    if not (folder / SUMS).exists():
        text = b"".join(_receive(system, url, SUMS, LARGEST_SUMS))
        sums = parse_sums(text)
        if not sums or not all(parse_name(name) or name == WEIGHTS for name in sums):
            raise CacheDamagedError(f"{url}/{SUMS} is no list of a cache's files: give the URL of a folder of `pack`")
        for name, digest in compute_sums(folder).items():
            if digest != sums.get(name):
                (folder / name).unlink()
        write_durably(folder / SUMS, [text])
    sums = read_sums(folder)
    sizes = {name: _size(system, url, name) for name in _missing(url, folder, sums, teachers)}
    total, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if total > free:
        raise CacheSpaceError(
            f"{url} has {total:,} more bytes, and {free:,} are free at {folder}: free some space, or choose `teachers`"
        )
    with task("downloading", total=total, unit="bytes") if task else nullcontext() as bar:
        for name, size in sizes.items():
            write_durably(folder / name, _checked(system, url, name, size, sums[name], folder, bar))


def _checked(system: Any, url: str, name: str, size: int, digest: str, folder: Path, bar: Any) -> Iterator[bytes]:
    """The chunks of a file; after the last one, the error of bytes that do not match the digest."""
    hashed = hashlib.sha256()
    for chunk in _receive(system, url, name, size):
        hashed.update(chunk)
        if bar:
            bar.advance(len(chunk))
        yield chunk
    if hashed.hexdigest() != digest:
        raise CacheDamagedError(
            f"{url}/{name} does not match {SUMS}: run the same command again, and if the cache there has changed, "
            f"remove {folder / SUMS} first"
        )


def _receive(system: Any, url: str, name: str, most: int) -> Iterator[bytes]:
    """The chunks of a file of at most so many bytes."""
    address, received = _address(url, name), 0
    with _errors_in_words(address), system.open(address, "rb", block_size=0) as file:  # 0: one stream
        while chunk := file.read(_CHUNK):
            received += len(chunk)
            if received > most:
                raise CacheDamagedError(f"{address} has more than {most:,} bytes, which is more than its server says")
            yield chunk


def _size(system: Any, url: str, name: str) -> int:
    address = _address(url, name)
    with _errors_in_words(address):
        size = system.info(address).get("size")
    if not isinstance(size, int) or size < 0:
        raise CacheDamagedError(f"{address} has no size: download the folder by other means, and give it instead")
    return size


def _address(url: str, name: str) -> str:
    return f"{url}/{quote(name) if url.startswith('http') else name}"


def _file_system(url: str) -> Any:
    """The protocol's file system of fsspec."""
    import fsspec  # with the package of the protocol, it takes half a second

    protocol = url.partition("://")[0]
    if protocol not in (*PACKAGES, "memory"):  # of tests
        raise CacheValueError(f"there is no cache at {url}: a URL begins with {', '.join(PACKAGES)}")
    options: dict[str, Any] = {}
    try:
        if PACKAGES.get(protocol) == "aiohttp":
            import aiohttp

            # Its usual limit is five minutes for a file of any size.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
            options["client_kwargs"] = {"timeout": timeout}
        return fsspec.filesystem(protocol, **options)
    except ImportError:
        package = PACKAGES[protocol]
        raise CacheValueError(f"{package} is not installed, which {protocol}:// needs: pip install {package}") from None


@contextmanager
def _errors_in_words(address: str) -> Iterator[None]:
    """Whatever a protocol's package raises, as one sentence."""
    try:
        yield
    except CacheDamagedError:
        raise
    except Exception as error:
        cause = error.__cause__ or error  # of a refused connection too, fsspec raises FileNotFoundError
        reason = visible_line(str(cause))[:200] or type(cause).__name__
        raise CacheMissingError(
            f"{address} cannot be read ({reason}): check the URL and the connection; the same command resumes"
        ) from error
