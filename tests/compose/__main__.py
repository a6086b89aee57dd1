"""`python -m tests.compose`: builds the image for CPUs and tries what the containers promise, on a real Docker.

Needs Docker with BuildKit, Compose 2.24 or newer, and the images of Prometheus and Redis that the Compose files name,
for nothing is pulled while it runs. Everything is a project of its own, which is deleted at the end. The record goes
to docs/results/compose.jsonl with --record.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from packaging.utils import canonicalize_name

from tests.compose.engine import (
    Compose,
    Failed,
    answers,
    classify,
    expect,
    get,
    inspect,
    resident_mib,
    run,
    until,
)
from tests.load import load_records
from tests.support import int8, standin
from tests.support.paths import ROOT

IMAGE = "freqmerge:cpu"
FILES = ("docker-compose.yml", "docker/compose.cpu.yml")
REQUESTS = 1000
TRAINED = "/models/mine/checkpoints/best_model.safetensors"
PYPI = re.compile(r"pkg:pypi/([^@]+)@.*")
ROCKET = (ROOT / "service/samples/rocket.jpg").read_bytes()


class Trial:
    """The steps, in order; each returns what it measured."""

    def __init__(self, build_flags: Sequence[str], folder: Path) -> None:
        self._build_flags = build_flags
        self._folder = folder
        self.compose = Compose(FILES, 18000, 19090)

    def steps(self) -> list[Callable[[], dict[str, Any]]]:
        """All of them."""
        return [
            self.legacy_builder_is_told,
            self.image_is_small_and_bare,
            self.image_lists_its_packages,
            self.gpu_image_is_built_up_to_nvidias_index,
            self.up_to_healthy,
            self.labels_heatmap_and_metrics,
            self.prometheus_scrapes_and_has_the_rules,
            self.memory_after_requests,
            self.a_killed_service_comes_back,
            self.a_stop_under_load_loses_nothing,
            self.an_older_cache_is_survived,
            self.a_new_checkpoint_is_picked_up,
            self.what_a_container_trains_is_served,
            self.two_replicas_share_their_pictures,
        ]

    def legacy_builder_is_told(self) -> dict[str, Any]:
        done = run("docker", "build", "--target", "cpu", ".", check=False, env={"DOCKER_BUILDKIT": "0"})
        expect(done.returncode != 0 and "BuildKit" in done.stderr, "an error that says BuildKit", done.stderr[-300:])
        return {}

    def image_is_small_and_bare(self) -> dict[str, Any]:
        seconds = self._build("cpu", "--tag", IMAGE, "--load")
        size = int(inspect(IMAGE, "{{.Size}}")) / 1e6
        expect(size <= 700, "at most 700 MB", size)
        listed = run(
            "docker", "run", "--rm", "--entrypoint", "sh", IMAGE, "-c", "ls /opt/venv/lib/python3.11/site-packages; id"
        )
        absent = {"torch", "timm", "torchvision", "matplotlib", "pyarrow", "pip"} & set(listed.stdout.split())
        expect(not absent, "none of torch's packages and no pip", sorted(absent))
        expect("uid=10001" in listed.stdout, "uid 10001", listed.stdout[-80:])
        for tool in ("gcc", "cc", "python -m pip"):
            found = run("docker", "run", "--rm", "--entrypoint", "sh", IMAGE, "-c", f"{tool} --version", check=False)
            expect(found.returncode != 0, f"no {tool}", found.stdout)
        return {"megabytes": round(size), "build_s": round(seconds, 1)}

    def image_lists_its_packages(self) -> dict[str, Any]:
        path = "/usr/share/doc/freqmerge/sbom.spdx.json"
        sbom = json.loads(run("docker", "run", "--rm", "--entrypoint", "cat", IMAGE, path).stdout)
        expect(sbom["spdxVersion"].startswith("SPDX-2"), "a list in SPDX 2", sbom["spdxVersion"])
        listing = "import importlib.metadata as m; print(*sorted({one.name for one in m.distributions()}))"
        installed = run("docker", "run", "--rm", "--entrypoint", "python", IMAGE, "-c", listing).stdout.split()
        addresses = [
            reference["referenceLocator"]
            for package in sbom["packages"]
            for reference in package.get("externalRefs", [])
            if reference["referenceType"] == "purl"
        ]
        listed = {canonicalize_name(PYPI.sub(r"\1", each)) for each in addresses if PYPI.match(each)}
        missing = {canonicalize_name(name) for name in installed} - listed
        expect(not missing, "every installed Python package in the list", sorted(missing))
        system = [each for each in addresses if each.startswith("pkg:deb/")]
        expect(len(system) > 50, "Debian's packages too", len(system))
        return {"python_packages": len(listed), "debian_packages": len(system)}

    def gpu_image_is_built_up_to_nvidias_index(self) -> dict[str, Any]:
        return {"build_s": round(self._build("gpu-locked"), 1)}

    def _build(self, target: str, *flags: str) -> float:
        """Builds a target of the Dockerfile; returns the seconds that it took."""
        started = time.monotonic()
        run("docker", "buildx", "build", *self._build_flags, "--target", target, *flags, ".")
        return time.monotonic() - started

    def up_to_healthy(self) -> dict[str, Any]:
        first = self.compose.up("freqmerge", "prometheus")
        self.compose("stop", "freqmerge")
        again = self.compose.up("freqmerge", "prometheus")
        container = self.compose.container()
        secured = inspect(container, "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}}")
        expect(secured == "true [ALL] 10001:10001", "a read-only root, no capabilities and a numbered user", secured)
        return {"first_healthy_s": round(first, 1), "healthy_s": round(again, 1)}

    def labels_heatmap_and_metrics(self) -> dict[str, Any]:
        answer = classify(self.compose.address, ROCKET)
        expect(answer["predictions"][0]["label"] == "rocket", "a rocket", answer["predictions"])
        drawn = get(f"{self.compose.address}/{answer['heatmap_url']}&view=panel")
        expect(drawn.content[:8] == b"\x89PNG\r\n\x1a\n", "a PNG", drawn.headers["content-type"])
        metrics = get(f"{self.compose.address}/metrics").text
        expect('precision="int8"' in metrics, "int8 in the metrics", metrics[:200])
        return {"probability": answer["predictions"][0]["probability"]}

    def prometheus_scrapes_and_has_the_rules(self) -> dict[str, Any]:
        def scraped() -> bool:
            try:
                found = get(f"{self.compose.prometheus}/api/v1/targets").json()["data"]["activeTargets"]
            except (Failed, httpx.HTTPError):
                return False
            return [target["health"] for target in found] == ["up"]

        seconds = until(scraped, "one target that is up")
        groups = get(f"{self.compose.prometheus}/api/v1/rules").json()["data"]["groups"]
        loaded = {rule["name"] for group in groups for rule in group["rules"]}
        written = yaml.safe_load((ROOT / "docker/alerts.yml").read_text())
        names = {rule["alert"] for group in written["groups"] for rule in group["rules"]}
        expect(loaded == names, f"the rules {sorted(names)}", sorted(loaded))
        return {"rules": len(loaded), "scraped_s": round(seconds, 1)}

    def memory_after_requests(self) -> dict[str, Any]:
        started = time.monotonic()
        with httpx.Client(base_url=self.compose.address, timeout=30) as client:
            for _ in range(REQUESTS):
                client.post("/classify", content=ROCKET, headers={"Content-Type": "image/jpeg"}).raise_for_status()
        seconds = time.monotonic() - started
        used = resident_mib(self.compose.container())
        expect(used <= 350, "at most 350 MiB", used)
        return {"requests": REQUESTS, "mebibytes": round(used), "requests_per_s": round(REQUESTS / seconds)}

    def a_killed_service_comes_back(self) -> dict[str, Any]:
        container = self.compose.container()
        before = int(inspect(container, "{{.RestartCount}}"))
        # the service's own process: `docker kill` would count as a stop by the operator, after which nothing restarts
        kill = "import os, pathlib, signal\nfor each in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        kill += " if b'-m\\0service' in each.read_bytes(): os.kill(int(each.parent.name), signal.SIGKILL)"
        run("docker", "exec", container, "python", "-c", kill)
        until(lambda: int(inspect(container, "{{.RestartCount}}")) > before, "a restart")
        seconds = until(lambda: answers(self.compose.address), "a service that is ready again")
        return {"ready_again_s": round(seconds, 1)}

    def a_stop_under_load_loses_nothing(self) -> dict[str, Any]:
        container = self.compose.container()
        # Past the published port: Docker's proxy takes a connection before it knows that nobody listens any more
        addresses = inspect(container, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
        address = f"http://{addresses}:8000"
        ends: list[str] = []
        stopping = threading.Event()

        def send() -> None:
            while True:
                try:
                    ends.append(str(_post(address)))
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if stopping.is_set():
                        return
                except httpx.HTTPError as error:
                    ends.append(f"lost: {error!r}")
                    if stopping.is_set():
                        return

        clients = [threading.Thread(target=send) for _ in range(8)]
        for client in clients:
            client.start()
        until(lambda: len(ends) > 100, "a hundred answers")
        stopping.set()
        run("docker", "stop", "--time", "45", container)
        for client in clients:
            client.join()
        code = inspect(container, "{{.State.ExitCode}}")
        counted = {end: ends.count(end) for end in sorted(set(ends))}
        expect(code == "0", "exit code 0", code)
        expect(set(counted) <= {"200", "503"}, "200, or 503 that says why", counted)
        return {"answers": counted}

    def an_older_cache_is_survived(self) -> dict[str, Any]:
        age = "import json, pathlib\nfor each in pathlib.Path('/var/cache/freqmerge/engines').glob('*.json'):\n"
        age += " told = json.loads(each.read_text()); told['format'] = 1; told['origin'].pop('graph')\n"
        age += " each.write_text(json.dumps(told)); print(each.name)"
        self.compose.up("freqmerge")
        changed = run("docker", "exec", self.compose.container(), "python", "-c", age).stdout.split()
        expect(len(changed) == 1, "one engine in the cache", changed)
        self.compose("restart", "freqmerge")
        until(lambda: answers(self.compose.address), "a service that is ready")
        log = self.compose("logs", "--no-log-prefix", "freqmerge")
        expect("expected engine format" in log, "a log line on the old engine", log[-500:])
        return {}

    def a_new_checkpoint_is_picked_up(self) -> dict[str, Any]:
        own = self._with_settings(FREQMERGE_CHECKPOINT="/models/own.safetensors")
        digests = []
        for index, start in enumerate((lambda: own.up("freqmerge"), lambda: own("restart", "freqmerge"))):
            made = self._folder / f"made-{index}"
            made.mkdir()
            checkpoint, _ = int8.export(made, seed=index)
            self._put(checkpoint, "own")
            start()
            until(lambda: answers(own.address), "a service that is ready")
            digests.append(get(f"{own.address}/model").json()["digest"])
        expect(digests[0] != digests[1], "another digest after the restart", digests)
        return {}

    def what_a_container_trains_is_served(self) -> dict[str, Any]:
        """The lines of docs/guide/containers.md, on small pictures."""
        seconds = self._build("train", "--tag", "freqmerge:train", "--load")
        data = standin.write(self._folder)
        for path in (self._folder, data, *data.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        training = Compose((*FILES, "docker/compose.train.yml"), 18000, 19090)
        small = "--backbone vit_tiny_patch16_224 --backbone_args patch_size=8 embed_dim=48 depth=3 num_heads=3"
        small += " --image_size 32 --merge_layers 1 --epochs 1 --epoch_images 100 --batch_size 50"
        for command in (
            f"training.train --data_dir /data --output_dir /models/mine {small}",
            f"training.evaluate --data_dir /data --ckpt {TRAINED} --output_dir /models/mine",
            f"training.quantize --data_dir /data --ckpt {TRAINED} --output_dir /models/mine",
        ):
            training("run", "--rm", "-v", f"{data}:/data:ro", "freqmerge", "python", "-m", *command.split())
        own = self._with_settings(FREQMERGE_CHECKPOINT=TRAINED)
        own.up("freqmerge")
        serves = get(f"{own.address}/model").json()
        expect(serves["engine"]["kind"] == "openvino", "a trained model in OpenVINO", serves)
        answer = classify(own.address, ROCKET)
        get(f"{own.address}/{answer['heatmap_url']}")
        return {"build_s": round(seconds, 1)}

    def _with_settings(self, **environment: str) -> Compose:
        """The project with further settings of the service."""
        named = self._folder / "own.yml"
        named.write_text(yaml.safe_dump({"services": {"freqmerge": {"environment": environment}}}))
        return Compose((*FILES, named), 18000, 19090)

    def _put(self, checkpoint: Path, name: str) -> None:
        """Copies a checkpoint and its artifact into the volume of models."""
        parts = sorted(checkpoint.parent.glob("tiny.*"))
        copies = " && ".join(f"cp /from/{part.name} /models/{part.name.replace('tiny', name, 1)}" for part in parts)
        mounts = ("-v", f"{checkpoint.parent}:/from:ro", "-v", "freqmerge-test_models:/models")
        run("docker", "run", "--rm", *mounts, "--user", "0", "--entrypoint", "sh", IMAGE, "-c", copies)

    def two_replicas_share_their_pictures(self) -> dict[str, Any]:
        self.compose.down()
        anywhere = self._folder / "anywhere.yml"
        anywhere.write_text('services:\n  freqmerge:\n    ports: !override\n      - "127.0.0.1::8000"\n')
        shared = Compose((*FILES, "docker/compose.redis.yml", anywhere), 18000, 19090)
        shared.up("freqmerge", "redis", scale=2)
        ports = [shared("port", "--index", str(index), "freqmerge", "8000").strip() for index in (1, 2)]
        one, other = (f"http://{port}" for port in ports)
        answer = classify(one, ROCKET)
        get(f"{other}/{answer['heatmap_url']}")
        expect(one != other, "two addresses", ports)
        return {}


def _post(address: str) -> int:
    return httpx.post(
        f"{address}/classify", content=ROCKET, headers={"Content-Type": "image/jpeg"}, timeout=60
    ).status_code


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: a line per step, exit code 1 where one fails."""
    flags = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__)
    flags.add_argument(
        "--build-flags", default="", help="further words for docker buildx build, such as --network=host"
    )
    flags.add_argument("--record", action="store_true", help="write docs/results/compose.jsonl")
    parsed = flags.parse_args(arguments)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(shlex.split(parsed.build_flags), Path(folder))
        trial.compose.down()
        try:
            for step in trial.steps():
                started = time.monotonic()
                name = step.__name__.replace("_", " ")
                found = step()
                results.append({"step": name, "seconds": round(time.monotonic() - started, 1), **found})
                print(f"ok    {name}  {found or ''}", flush=True)
        except Failed as error:
            print(f"FAIL  {name}: {error}\n{trial.compose('logs', '--tail', '20', check=False)[-3000:]}", flush=True)
            sys.exit(1)
        finally:
            trial.compose.down()
    if parsed.record:
        words = ["python", "-m", "tests.compose", *(arguments if arguments is not None else sys.argv[1:])]
        print(f"recorded: {load_records.write('compose', shlex.join(words), results)}")


if __name__ == "__main__":
    main()
