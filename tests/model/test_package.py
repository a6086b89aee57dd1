import subprocess
import sys

from model.labels import CLASS_NAMES, MEMBERS, SUPERCLASSES

BLOCKED = ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic_settings")


def test_model_and_training_import_without_a_web_framework():
    packages = "model.engines.engine, training.train, training.release, training.timing"
    blocking = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r})); import {packages}; print('imported')"
    done = subprocess.run([sys.executable, "-c", blocking], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\n", done.stderr


def test_there_are_a_hundred_classes_in_twenty_superclasses_of_five():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(SUPERCLASSES) == 100
    assert len(MEMBERS) == 20
    assert {len(members) for members in MEMBERS.values()} == {5}
    assert CLASS_NAMES[69] == "rocket"
