"""An MLflow registry: its versions are versions here, its aliases are labels. Over its REST API; MLflow is not needed.

A version's files are downloaded and converted as `octoserve model import` does it, in a process of its own. A pickle
is read only where the operator trusts the registry, and never in the service.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from octoserve.core.errors import SettingsError
from octoserve.core.names import is_loopback, model_name_problem
from octoserve.origins.objects import ObjectOrigin, name_problem
from octoserve.origins.protocol import MAX_BYTES, Away, Key, Moved, Object, Offer, Offered
from octoserve.repository.digest import MAX_DEPTH, MAX_FILES
from octoserve.repository.layout import Refused, ignored, version_number

TIMEOUT = 30.0
"""Seconds for an answer to begin, and between two pieces of it."""
CONVERSION = 600.0
"""Seconds that a conversion may take."""
MAX_ANSWER = 64 << 20
"""Bytes of one answer of the API."""
_PAGE = 1000
_ROOTS = 100
"""Registered models on one page: MLflow gives no more than a thousand."""
_PIECE = 1 << 20


class MlflowOrigin:
    """See `Origin`. The address is `mlflow+http://host:5000` or `mlflow+https://...`.

    unpickle: a pickle may be read
    """

    def __init__(self, url: str, unpickle: bool = False) -> None:
        """Connects to nothing. Raises SettingsError."""
        self.name = url.rstrip("/")
        self._base = self.name.removeprefix("mlflow+")
        place = urlsplit(self._base)
        if place.scheme not in ("http", "https") or not place.hostname or place.query or place.username:
            raise SettingsError(
                "repository: mlflow+http://host:5000 wanted (who asks is said by MLFLOW_TRACKING_TOKEN, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD); another address came"
            )
        self._host = place.netloc
        self._local = is_loopback(place.hostname)
        self._unpickle = unpickle
        self._opener = urllib.request.build_opener(_SameHost())

    # Looking.

    def look(self) -> Offer:
        """See `Origin`."""
        versions: dict[Key, Offered] = {}
        aliases: dict[str, dict[str, int]] = {}
        notes: set[str] = set()
        for model in self._pages("registered-models/search", "registered_models", _ROOTS):
            for alias in model.get("aliases") or ():
                number = version_number(str(alias.get("version")))
                if number is not None:
                    aliases.setdefault(str(model["name"]), {})[str(alias["alias"])] = number
        for told in self._pages("model-versions/search", "model_versions", _PAGE):
            name, number = str(told.get("name")), version_number(str(told.get("version")))
            problem = model_name_problem(name) or name_problem(name) or ("a hidden name" if ignored(name) else "")
            if problem or number is None:
                notes.add(f"{name!a} is ignored: {problem or 'its version is no number'}")
            elif told.get("status", "READY") == "READY":
                mark = f"{told.get('source')} {told.get('creation_timestamp')} {told.get('run_id') or ''}"
                versions[name, number] = Offered(mark=mark, whole=True)
        return Offer(versions, aliases, tuple(sorted(notes)))

    def _pages(self, path: str, field: str, size: int) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            page = self._api(path, {"max_results": str(size), **({"page_token": token} if token else {})})
            found = page.get(field) or []
            if not isinstance(found, list) or not all(isinstance(one, dict) and "name" in one for one in found):
                raise Away(f"{self.name}: what it says to {path} is no list of models; is it MLflow?")
            yield from found
            token = str(page.get("next_page_token") or "")
            if not token:
                return

    # Fetching.

    def fetch(self, key: Key, offered: Offered, folder: Path, have: Callable[[Object], Path | None]) -> None:
        """See `Origin`."""
        raw = folder.with_name(f"{folder.name}.mlflow")
        shutil.rmtree(raw, ignore_errors=True)
        raw.mkdir()
        try:
            told = self._api("model-versions/get-download-uri", {"name": key[0], "version": str(key[1])})
            self._download(str(told.get("artifact_uri") or ""), raw)
            self._convert(raw, folder)
        finally:
            shutil.rmtree(raw, ignore_errors=True)

    def _download(self, uri: str, folder: Path) -> None:
        place = urlsplit(uri)
        if place.scheme == "mlflow-artifacts":
            if place.netloc not in ("", self._host):
                raise Refused(f"its files are said to lie at {place.netloc}, which is another server than {self._host}")
            path = unquote(place.path).strip("/").removeprefix("api/2.0/mlflow-artifacts/artifacts/")
            self._download_folder(path, folder, Budget(), 0)
        elif place.scheme in ("s3", "gs"):
            _from_store(uri, folder)
        elif place.scheme in ("file", "") and self._local and place.path.startswith("/"):
            _from_disk(Path(unquote(place.path)), folder)
        else:
            raise Refused(
                f"its files lie at {uri[:200]!r}; wanted: the server's own artifacts (mlflow-artifacts:), s3://, "
                "gs://, or a folder where the registry is on this machine"
            )

    def _download_folder(self, path: str, folder: Path, budget: Budget, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Refused(f"its files are nested deeper than {MAX_DEPTH} folders")
        page = self._get(f"/api/2.0/mlflow-artifacts/artifacts?{urlencode({'path': path})}")
        for told in _json(page, self.name).get("files") or ():
            name = str(told.get("path", "")).rpartition("/")[2]
            problem = name_problem(name)
            if problem:
                raise Refused(problem)
            if told.get("is_dir"):
                (folder / name).mkdir()
                self._download_folder(f"{path}/{name}", folder / name, budget, depth + 1)
            else:
                budget.file()
                self._save(f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{path}/{name}')}", folder / name, budget,
                           told.get("file_size"))  # fmt: skip

    def _save(self, path: str, file: Path, budget: Budget, size: Any) -> None:
        """A body whole, as long as the server said that it would be."""
        came = 0
        with self._asked(path) as answer, open(file, "xb") as out:
            promised = answer.headers.get("Content-Length")
            try:
                while piece := answer.read(_PIECE):
                    came += len(piece)
                    budget.bytes(len(piece))
                    out.write(piece)
            except (OSError, http.client.HTTPException) as error:
                raise Away(f"{self.name}: {file.name} broke off: {error}") from None
        wanted = {int(said) for said in (promised, size) if str(said).isdecimal()}
        if wanted - {came}:
            raise Away(f"{self.name}: {file.name}: {max(wanted)} bytes wanted, {came} came")

    def _convert(self, raw: Path, folder: Path) -> None:
        """In a process of its own: what a pickle runs, and what a library takes of memory, stays out of the service."""
        command = [sys.executable, "-m", "octoserve.runtimes.importing", str(raw), str(folder)]
        command += ["--unpickle"] if self._unpickle else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERSION, check=False)
        except subprocess.TimeoutExpired:
            raise Refused(f"its conversion took more than {CONVERSION:g} s") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:1000]
            raise Refused(said.replace("pass --unpickle if you trust", "add `pickle` to `trust` if you trust"))

    # Asking.

    def _api(self, path: str, parameters: dict[str, str]) -> dict[str, Any]:
        return _json(self._get(f"/api/2.0/mlflow/{path}?{urlencode(parameters)}"), self.name)

    def _get(self, path: str) -> bytes:
        with self._asked(path) as answer:
            try:
                data: bytes = answer.read(MAX_ANSWER + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Away(f"{self.name}: its answer broke off: {error}") from None
        if len(data) > MAX_ANSWER:
            raise Away(f"{self.name}: an answer of more than {MAX_ANSWER} bytes")
        return data

    def _asked(self, path: str) -> Any:
        request = urllib.request.Request(self._base + path, headers=_credentials())
        try:
            return self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace").strip()
            where = f"{self.name}{path.partition('?')[0]}"
            if error.code in (401, 403):
                raise SettingsError(
                    f"{where}: no right to it ({error.code}); check MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME "
                    "and MLFLOW_TRACKING_PASSWORD"
                ) from None
            if error.code == 404 and "model-versions/get-download-uri" in path:
                raise Moved(f"{where}: the version is gone") from None
            raise Away(f"{where}: answered {error.code}: {' '.join(said.split())}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"{self.name}: {getattr(error, 'reason', None) or error}") from None


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows to the same server only: what says who asks goes along."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            raise Away(f"{urlsplit(req.full_url).netloc} sends on to {urlsplit(newurl).netloc}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Budget:
    """What one version may hold. Raises Refused."""

    def __init__(self) -> None:
        self._files = self._bytes = 0

    def file(self) -> None:
        """One more."""
        self._files += 1
        if self._files > MAX_FILES:
            raise Refused(f"it holds more than {MAX_FILES} files; a version is a small set of artifacts")

    def bytes(self, count: int) -> None:
        """So many more."""
        self._bytes += count
        if self._bytes > MAX_BYTES:
            raise Refused(f"it holds more than {MAX_BYTES} bytes")


def _from_store(uri: str, folder: Path) -> None:
    """A folder of an object store, as one version of a repository is fetched."""
    above, _, name = uri.rstrip("/").rpartition("/")
    ObjectOrigin(above).fetch_folder(name, folder)


def _from_disk(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise Refused(f"{source} is no folder of this machine")
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _credentials() -> dict[str, str]:
    """As MLflow's own tools are told them."""
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Away(f"{name}: what came is no JSON object; is it MLflow?")
    return found
