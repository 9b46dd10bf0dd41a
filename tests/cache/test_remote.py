"""A cache at a URL: only what is needed arrives, once, whole and as it was packed, whatever the server does."""

import io
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demkd
from demkd.cache import CacheDamagedError, CacheMissingError, CacheSpaceError, CacheValueError, open_cache
from demkd.cache.remote import local_folder
from demkd.cache.shards import compute_sums, sums_text
from demkd.errors import UserError
from tests.cache import counting

A1, A2, B1, B2 = (counting.file_of(name, number=number, count=2) for name in "ab" for number in (1, 2))


class Server(ThreadingHTTPServer):
    """Serves a folder, and keeps what was fetched; `answers` gives the bytes of some files, and what HEAD says."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.fetched: list[str] = []
        self.answers: dict[str, tuple[bytes, int | None]] = {}

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(arguments[2].folder))

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def send_head(self) -> Any:
        name = self.path[1:]
        self.server.fetched.append(name if self.command == "GET" else "")
        if name not in self.server.answers:
            return super().send_head()
        body, size = self.server.answers[name]
        self.send_response(200)
        if self.command == "HEAD" and size is not None:
            self.send_header("Content-Length", str(size))
        self.end_headers()  # without a length, a body ends with the connection
        return io.BytesIO(body)


def fetched(server: Server) -> list[str]:
    """The files that were fetched since the last call; "" if there were requests but for these."""
    names = sorted(set(server.fetched))
    server.fetched.clear()
    return [name for name in names if name] or names


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for number, name in enumerate("ab"):
        counting.fill_shards(folder / "cache", counting.shape(), count=2, teacher=name, number=number)
    demkd.pack(folder / "cache", out=folder / "copy", progress=False)
    return folder / "copy"


@pytest.fixture
def server(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A copy of the packed folder, and an empty cache directory of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    with Server(Path(shutil.copytree(packed, tmp_path / "served"))) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield serving
        serving.shutdown()


def downloaded(tmp_path: Path) -> set[str]:
    """The files in the user's cache directory."""
    return {path.name for path in (tmp_path / "user").rglob("*") if path.is_file()} - {"download.lock"}


def test_only_what_is_needed_is_fetched_and_only_once(server: Server, packed: Path) -> None:
    with open_cache(server.url, ["b"]) as cache:
        assert cache.names == ("b",)
        assert np.array_equal(cache.teachers[0].read("logits", 1), open_cache(packed).teachers[1].read("logits", 1))
    assert fetched(server) == ["SHA256SUMS", B1, B2, "weights.h5"]
    with open_cache(server.url, ["b"]):
        assert fetched(server) == []
    report = demkd.verify(server.url + "/", progress=False)
    assert report.sound
    assert fetched(server) == [A1, A2]
    server.shutdown()
    weights = open_cache(server.url).teacher_weights
    assert np.array_equal(weights.values, open_cache(packed).teacher_weights.values)  # type: ignore[union-attr]
    assert demkd.inspect(server.url)["folder"] == str(report.folder)  # type: ignore[call-overload]
    with pytest.raises(CacheMissingError, match=f"there is no teacher 'c' at {server.url}; it has a, b"):
        open_cache(server.url, ["a", "c"])


def test_an_interrupted_download_resumes_with_the_next_file(server: Server, tmp_path: Path) -> None:
    """The server dies in the middle of a file; what arrived before is not fetched again, and no part is left."""
    content = (server.folder / A2).read_bytes()
    server.answers[A2] = content[:1000], len(content)
    with pytest.raises(UserError, match=f"{A2} does not match SHA256SUMS: run the same command again"):
        open_cache(server.url)
    assert fetched(server) == ["SHA256SUMS", A1, A2]
    assert downloaded(tmp_path) == {A1, "SHA256SUMS"}
    server.answers.clear()
    (tmp_path / "precious").write_text("mine")
    folder = next((tmp_path / "user").rglob(A1)).parent
    (folder / f"{A2}.creating").symlink_to(tmp_path / "precious")
    assert open_cache(server.url).names == ("a", "b")
    assert fetched(server) == [A2, B1, B2, "weights.h5"]
    assert (tmp_path / "precious").read_text() == "mine"


def test_two_at_once_fetch_every_file_once(server: Server) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(local_folder(server.url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert sorted(filter(None, server.fetched)) == ["SHA256SUMS", A1, A2, B1, B2, "weights.h5"]


def test_a_new_version_is_fetched_without_the_old_sums(server: Server) -> None:
    """Until then nothing is asked; then only what differs is fetched."""
    folder = local_folder(server.url)
    server.fetched.clear()
    counting.flip(server.folder / B1, counting.place(server.folder / B1, "logits"))
    (server.folder / "SHA256SUMS").write_text(sums_text(compute_sums(server.folder)))
    assert local_folder(server.url) == folder
    assert fetched(server) == []
    (folder / "SHA256SUMS").unlink()
    assert local_folder(server.url) == folder
    assert fetched(server) == ["SHA256SUMS", B1]
    assert compute_sums(folder) == compute_sums(server.folder)


OTHER_NAMES = (
    "../a.h5", "/etc/passwd.h5", "/a.00001-of-00001.h5", "..\\a.00001-of-00001.h5", "a.h5", "../a.00001-of-00001.h5",
    "a.00002-of-00001.h5", "a.00001-of-00001.sh", "a\x1b.00001-of-00001.h5", "weights.h5.lock",
)  # fmt: skip
LISTS = [f"{'0' * 64}  {name}\n" for name in OTHER_NAMES]


@pytest.mark.parametrize("sums", [*LISTS, "", "no list", "\x00" * 50, "0" * (1 << 25)], ids=range(14))
def test_a_list_of_other_names_is_refused(server: Server, tmp_path: Path, sums: str) -> None:
    server.answers["SHA256SUMS"] = sums.encode(), len(sums)
    with pytest.raises(CacheDamagedError, match=r"is no list of a cache's files|has more than 16,777,216 bytes"):
        open_cache(server.url)
    assert fetched(server) == ["SHA256SUMS"]
    assert downloaded(tmp_path) == set()
    assert {path.name for path in tmp_path.iterdir()} == {"user", "served"}


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (lambda content: (content[:-1] + b"x", len(content)), CacheDamagedError, "does not match SHA256SUMS"),
        (lambda content: (content * 2, len(content)), CacheDamagedError, "has more than [0-9,]* bytes"),
        (lambda content: (content, None), CacheDamagedError, "has no size"),
        (lambda content: (content, 1 << 60), CacheSpaceError, "more bytes, and [0-9,]* are free"),
    ],
)
def test_a_server_that_lies_is_refused(
    server: Server, tmp_path: Path, answer: Callable[[bytes], Any], error: type[Exception], why: str
) -> None:
    server.answers[A1] = answer((server.folder / A1).read_bytes())
    with pytest.raises(error, match=why):
        open_cache(server.url)
    assert downloaded(tmp_path) == {"SHA256SUMS"}


def test_names_with_every_letter_arrive(server: Server, tmp_path: Path) -> None:
    """`#`, `?` and `%41` have a meaning in a URL."""
    name = "a #?%41é"
    counting.fill(server.folder / "odd", counting.shape(views=1), teacher=name)
    (server.folder / "odd" / "SHA256SUMS").write_text(sums_text(compute_sums(server.folder / "odd")))
    assert open_cache(f"{server.url}/odd").names == (name,)


@pytest.mark.parametrize(
    ("url", "module", "why"),
    [
        ("https://host.invalid/x", "aiohttp", "aiohttp is not installed, which https:// needs: pip install aiohttp"),
        ("hf://datasets/a/b", "huggingface_hub", "huggingface_hub is not installed, which hf:// needs"),
        ("s3://bucket/x", "s3fs", "s3fs is not installed, which s3:// needs: pip install s3fs"),
        ("file:///etc", "", "there is no cache at file:///etc: a URL begins with http, https, hf, s3"),
    ],
)
def test_a_missing_package_is_one_sentence(
    url: str, module: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    with pytest.raises(CacheValueError, match=why):
        open_cache(url)


def test_where_nothing_is_the_url_and_the_reason_are_named(server: Server) -> None:
    with pytest.raises(CacheMissingError, match=f"{server.url}/no/SHA256SUMS cannot be read .*404.*check the URL"):
        open_cache(f"{server.url}/no")
    server.server_close()
    with pytest.raises(CacheMissingError, match=r"SHA256SUMS cannot be read .*onnect.* and the connection"):
        open_cache(server.url)
    with pytest.raises(CacheMissingError, match="memory://nothing/SHA256SUMS cannot be read"):
        open_cache("memory://nothing")
