"""/v1/files: uploaded, listed, read back and deleted."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import FormData, UploadFile
from typing_extensions import TypedDict

from openglm.serve.document import answers
from openglm.serve.errors import ServeError
from openglm.serve.files import PURPOSES, FileObject, file_object, pieces
from openglm.serve.listing import Listed, PageQuery, listed
from openglm.serve.service import Call, call, headers_of

router = APIRouter()
MOST_FIELDS = 16
OCTETS = "application/octet-stream"
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
    },
}
DOCUMENTED = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}
}


class FileDeleted(TypedDict):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


@router.post("/files", response_model=None, responses=answers(FileObject), openapi_extra=DOCUMENTED)
async def upload(call: Annotated[Call, Depends(call)]) -> Response:
    """Stores a file."""
    async with (
        call.visiting(),  # before the body is read
        call.request.form(max_files=1, max_fields=MOST_FIELDS) as form,
    ):
        file, purpose = _fields(form)
        add, key_id = call.service.files.add, call.identity.key_id
        name, content = file.filename or "", pieces(file.file.read)
        stored = await asyncio.to_thread(add, key_id, name, purpose, content)
        ignored = sorted({name for name, value in form.items() if value} - {"file", "purpose"})
    return JSONResponse(file_object(stored), headers=headers_of(ignored))


@router.get("/files")
async def list_files(
    call: Annotated[Call, Depends(call)], page: PageQuery, purpose: str | None = None
) -> Listed[FileObject]:
    """The files of this key."""
    found, has_more = await asyncio.to_thread(
        call.service.files.list, call.identity.key_id, page, purpose
    )
    return listed([file_object(file) for file in found], has_more)


@router.get("/files/{file_id}")
async def get_file(file_id: str, call: Annotated[Call, Depends(call)]) -> FileObject:
    """One file."""
    files = call.service.files
    return file_object(await asyncio.to_thread(files.get, call.identity.key_id, file_id))


@router.get(
    "/files/{file_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def content(file_id: str, call: Annotated[Call, Depends(call)]) -> FileResponse:
    """What is in a file: bytes to be saved, whatever they look like, and not to be shown."""
    files = call.service.files
    file = await asyncio.to_thread(files.get, call.identity.key_id, file_id)
    return FileResponse(files.path(file), media_type=OCTETS, filename=file.name)


@router.delete("/files/{file_id}")
async def delete(file_id: str, call: Annotated[Call, Depends(call)]) -> FileDeleted:
    """Deletes a file."""
    await asyncio.to_thread(call.service.files.delete, call.identity.key_id, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _fields(form: FormData) -> tuple[UploadFile, str]:
    """The file of a form, and its purpose."""
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadFile):
        raise ServeError("missing_field", "file: the form has no such file", "file")
    if not isinstance(purpose, str):
        raise ServeError("missing_field", "purpose: the form has no such text", "purpose")
    return file, purpose
