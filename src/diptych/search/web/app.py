"""The explorer's web application: the page, and the JSON API that it uses and that others may use.

    app = create_app(Index.open("my.lance"), encoder)      # for uvicorn or any ASGI server

It fetches nothing from anywhere: a picture is searched by handing it in, not by its address.
"""

import asyncio
import contextlib
import json
import mimetypes
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from diptych.data.pictures import BadPicture
from diptych.errors import DiptychError
from diptych.search.encoder import Encoder
from diptych.search.export import extension
from diptych.search.index import Index
from diptych.search.sources import picture_at
from diptych.search.storage import StorageError
from diptych.search.web.batching import Batcher
from diptych.search.web.download import TYPES, Downloads, rows_for
from diptych.search.web.explorer import Explorer, Forgotten, version_of
from diptych.search.web.guard import Guard, is_loopback, names_of
from diptych.search.web.schema import About, Answer, Ask, Ready, Uploaded, Wish
from diptych.search.web.thumbs import MAX_FILE, SIDES, Thumbs, upload

STATIC = "static"
KINDS = {".html", ".css", ".js", ".svg", ".webmanifest"}
FOR_GOOD = "private, max-age=31536000, immutable"
UPLOADS = 4  # bodies in memory at a time
MIME = {"jpg": "image/jpeg", "tif": "image/tiff", "pgm": "image/x-portable-graymap"}
Id = Annotated[str, Query(max_length=4096, description="of a row of the index")]
Side = Annotated[int, Query(description=f"pixels of the longer side at most: one of {', '.join(map(str, SIDES))}")]
Version = Annotated[str, Query(max_length=64, description="as a search answered it: the browser may keep the picture")]
PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(
    index: Index,
    encoder: Encoder,
    *,
    host: str = "127.0.0.1",
    safe: bool = False,
    thumbs: Thumbs | None = None,
) -> FastAPI:
    """host: where the server will listen; it decides which names it answers to and whether people are told where files
    lie. safe: nothing that is not known to be safe leaves the server."""
    explorer = Explorer(index, encoder, safe=safe, local=is_loopback(host))
    thumbs = thumbs or Thumbs()
    downloads = Downloads(read)
    searching = Batcher(explorer.answer)
    seeing = Batcher(explorer.encode_pictures, most=8, thread=searching.thread)
    decoders, writer = ThreadPoolExecutor(2, "diptych-picture"), ThreadPoolExecutor(1, "diptych-export")
    uploads = asyncio.Semaphore(UPLOADS)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        for pool in (searching.thread, decoders, writer):
            pool.shutdown(wait=False, cancel_futures=True)
        downloads.close()

    app = FastAPI(
        title="diptych",
        description=(__doc__ or "").partition("\n")[0],
        version=explorer.about().version,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    app.add_middleware(Guard, names=names_of(host))

    async def in_thread(pool: ThreadPoolExecutor, work: Callable[..., Any], *words: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *words)

    def row_of(identifier: str) -> dict[str, Any]:
        row = explorer.row(identifier)
        if row is None:
            raise HTTPException(404, "no such picture")
        return row

    # -- the page ------------------------------------------------------------------------------------------------------

    for name, (data, kind) in page_files().items():
        add_file(app, "/" if name == "index.html" else f"/{name.removesuffix('.html')}", data, kind)

    # -- the API -------------------------------------------------------------------------------------------------------

    @app.get("/api/about", summary="What is in the index, and what it can be filtered by")
    async def about() -> About:
        return await in_thread(searching.thread, explorer.about)

    @app.post("/api/search", summary="A page of results", response_model=Answer)
    async def search(ask: Ask) -> Response:
        return json_of(await searching(ask))

    @app.post("/api/picture", summary="Hand in a picture to search by", openapi_extra=PICTURE_BODY)
    async def picture(request: Request) -> Uploaded:
        async with uploads:
            data = await request.body()
            token, image = await in_thread(decoders, upload, data)
            pixels = await in_thread(decoders, encoder.clip.preprocess, image)
        await seeing((token, pixels))
        return Uploaded(picture=token, width=image.width, height=image.height)

    @app.get("/thumb", summary="A picture of the index, small, as JPEG", response_class=Response)
    async def thumb(request: Request, id: Id, side: Side = SIDES[0], v: Version = "") -> Response:
        if side not in SIDES:
            raise HTTPException(422, f"side: one of {', '.join(map(str, SIDES))}")
        row = explorer.rows.find(id) or await in_thread(decoders, row_of, id)
        version = version_of(row)
        headers = {"etag": f'"{version}-{side}"', "cache-control": FOR_GOOD if v == version else "private, no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        data = await in_thread(decoders, thumbs.get, version, side, lambda: read(row))
        return Response(data, media_type="image/jpeg", headers=headers)

    @app.get("/original", summary="A picture of the index, byte for byte, to be saved", response_class=Response)
    async def original(id: Id) -> Response:
        row = await in_thread(decoders, row_of, id)
        data = await in_thread(decoders, read, row)
        if len(data) > MAX_FILE:
            raise HTTPException(413, "larger than a browser should get")
        kind = extension(data)
        headers = {"content-disposition": f'attachment; filename="picture.{kind}"'}
        return Response(data, media_type=MIME.get(kind, f"image/{kind}"), headers=headers)

    @app.post("/api/export", summary="Write a subset to a file")
    async def export(wish: Wish) -> Ready:
        table = await in_thread(searching.thread, rows_for, explorer, wish)
        return await in_thread(writer, downloads.make, table, wish.format, explorer.about().name, explorer.row)

    @app.get("/api/export/{token}", summary="Fetch a subset", response_class=FileResponse)
    async def fetch(token: Annotated[str, Path(max_length=64)]) -> Response:
        found = downloads.find(token)
        if found is None:
            raise HTTPException(410, "this subset is no longer here; export it again")
        return FileResponse(found.path, media_type=TYPES[found.path.suffix], filename=found.name)

    # -- what is wrong is said as {"error": ...} -----------------------------------------------------------------------

    @app.exception_handler(DiptychError)
    async def mistake(_: Request, error: DiptychError) -> Response:
        kinds = ((Forgotten, 410), (BadPicture, 422), (StorageError, 503))
        status = next((code for kind, code in kinds if isinstance(error, kind)), 400)
        return JSONResponse({"error": str(error)}, status)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        what = first["msg"].removeprefix("Value error, ")
        return JSONResponse({"error": f"{where}: {what}" if where else what}, 422)

    return app


def read(row: dict[str, Any]) -> bytes:
    """A row's picture. Raises BadPicture."""
    if not row.get("path"):
        raise BadPicture("the index does not say where it is")
    return picture_at(row["path"])


def page_files() -> dict[str, tuple[bytes, str]]:
    """name -> (bytes, type): all that a browser can ask for by name, read once; no path is ever made of a request."""
    found = {}
    for file in files("diptych.search.web").joinpath(STATIC).iterdir():
        if any(file.name.endswith(kind) for kind in KINDS):
            guess = "text/javascript" if file.name.endswith(".js") else mimetypes.guess_type(file.name)[0]
            found[file.name] = (file.read_bytes(), guess or "application/manifest+json")
    return found


def add_file(app: FastAPI, path: str, data: bytes, kind: str) -> None:
    async def send() -> Response:
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    app.add_api_route(path, send, include_in_schema=False)


def json_of(answer: Answer) -> Response:
    """Without a second validation of what was made here."""
    body = {name: getattr(answer, name) for name in Answer.model_fields}
    body["results"] = [found.__dict__ for found in answer.results]
    return Response(json.dumps(body, ensure_ascii=False, allow_nan=False), media_type="application/json")
