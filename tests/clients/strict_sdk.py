"""A pytest plugin for the SDKs' own tests, which catch their errors and print them.

An answer that is an error becomes an exception that they do not know, and fails the test.
OPENGLM_SDK says which SDK it is.
"""

import importlib
import os

client = importlib.import_module(f"{os.environ['OPENGLM_SDK']}.core._http_client")


class ErrorAnswer(Exception):
    """The server refused, or failed."""


def as_failure(self, response):
    """What is raised in place of the SDK's errors."""
    asked = response.request
    found = f"{asked.method} {asked.url.path}: {response.status_code} {response.text[:300]}"
    return ErrorAnswer(found)


client.HttpClient._make_status_error = as_failure
