"""What a process has imported by the time its socket listens."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

PROGRAM = """
import sys
from service import __main__
from service.http import server

def serve(app, service, opened):
    print(opened.getsockname()[1] > 0, sorted({"torch", "torchvision", "timm", "openvino"} & set(sys.modules)))

server.serve = serve
sys.exit(__main__.main(["--host", "127.0.0.1", "--port", "0"]))
"""


def test_the_tensor_library_is_not_imported_before_the_socket_listens() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("True []\n", 0), done.stderr


DECODER = """
import sys
from service.pictures import decode_process
print(sorted({"pydantic", "fastapi", "starlette", "uvicorn", "openvino", "torch"} & set(sys.modules)))
"""


def test_a_process_that_decodes_imports_nothing_of_the_web_and_no_settings() -> None:
    done = subprocess.run([sys.executable, "-c", DECODER], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", "two of them stay in memory beside the service"
