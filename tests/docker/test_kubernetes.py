"""The files for a cluster fit Kubernetes' schemas, and name what image, service and Ray really have."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.observe.metrics import metric_names
from service.settings import PREFIX, Settings, unknown_variables
from tests.docker.files import DOCKER, ROOT, compose, stages
from tests.support.doubles import FakeEngine, loader

FOLDER = DOCKER / "kubernetes"
KUBERNETES = "1.34"
DEPLOYMENTS = ("deployment.yml", "deployment-cpu.yml")


def documents(name: str) -> dict[str, Any]:
    """The objects of a file, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))}


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the files describe."""
    for name in DEPLOYMENTS:
        yield name.removesuffix(".yml"), documents(name)["Deployment"]["spec"]["template"]["spec"]
    yield "kserve", predictor()
    cluster = documents("rayservice.yml")["RayService"]["spec"]["rayClusterConfig"]
    yield "ray head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield f"ray {group['groupName']}", group["template"]["spec"]


def predictor() -> dict[str, Any]:
    spec: dict[str, Any] = documents("inferenceservice.yml")["InferenceService"]["spec"]["predictor"]
    return spec


PODS = dict(pod_specs())
OURS = {name: spec for name, spec in PODS.items() if not name.startswith("ray")}


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app(Settings(), loader(FakeEngine()))


@pytest.mark.parametrize("name", DEPLOYMENTS)
@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"])
def test_the_plain_objects_fit_the_schemas_of_kubernetes(kind: str, name: str) -> None:
    kubernetes_validate.validate(documents(name)[kind], KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_the_pods_inside_custom_resources_fit_them_too(name: str) -> None:
    own = ("minReplicas", "maxReplicas")  # KServe's, beside what a pod has
    spec = {field: value for field, value in PODS[name].items() if field not in own}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_misspelt_field_is_found() -> None:
    wrong = documents("deployment.yml")["Service"]
    wrong["spec"]["selectr"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", OURS)
def test_a_pod_of_ours_is_neither_root_nor_writes_its_image_and_has_the_gpu_of_its_image(name: str) -> None:
    spec = OURS[name]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"]
    gpus = {"freqmerge:gpu": 1, "freqmerge:cpu": None}
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus[container["image"]]
    assert (container["image"] == "freqmerge:cpu") == (name == "deployment-cpu")
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"/tmp", "/var/cache/freqmerge"}
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OURS)
def test_probes_ask_routes_that_exist_and_a_shutdown_has_the_time_it_takes(name: str, app: Any) -> None:
    spec = OURS[name]
    [container] = spec["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert set(paths.values()) <= app.openapi()["paths"].keys()
    assert paths["startup"] == paths["readiness"] != paths["liveness"]
    delay_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= delay_s + Settings().shutdown_timeout_s + 10


@pytest.mark.parametrize("name", OURS)
def test_a_pod_becomes_ready_within_the_start_period_of_its_image(name: str) -> None:
    [container] = OURS[name]["containers"]
    stage = container["image"].removeprefix("freqmerge:")
    [health] = [line for line in stages()[stage] if line.startswith("HEALTHCHECK")]
    probe = container["startupProbe"]
    assert f"--start-period={probe['periodSeconds'] * probe['failureThreshold']}s" in health
    composed = {"gpu": "docker-compose.yml", "cpu": "docker/compose.cpu.yml"}[stage]
    assert f"--start-period={compose(composed)['services']['freqmerge']['healthcheck']['start_period']}" in health


@pytest.mark.parametrize("name", OURS)
def test_a_pod_listens_where_its_image_does_and_is_probed_and_scraped_there(name: str) -> None:
    [container] = OURS[name]["containers"]
    [port] = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in stages()["runtime"]
    for probe in ("startup", "readiness", "liveness"):
        assert container[f"{probe}Probe"]["httpGet"]["port"] in (port["name"], port["containerPort"])


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_service_and_scraping_lead_to_the_port_of_the_pod(name: str) -> None:
    found = documents(name)
    template = found["Deployment"]["spec"]["template"]
    [port] = template["spec"]["containers"][0]["ports"]
    assert found["Service"]["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": port["name"]}]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])


def test_a_pod_on_cpus_computes_with_as_many_threads_as_it_requests_and_nothing_halts_it() -> None:
    [container] = PODS["deployment-cpu"]["containers"]
    threads = next(one for one in container["env"] if one["name"] == "FREQMERGE_THREADS")
    assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert container["resources"]["requests"]["cpu"] == "2"
    assert "cpu" not in container["resources"]["limits"]


def test_the_memory_of_a_pod_on_cpus_holds_all_that_the_settings_allow_at_a_time() -> None:
    spec = PODS["deployment-cpu"]
    settings = Settings()
    allowed = settings.store_max_bytes + settings.max_decoding_bytes + settings.max_body_bytes
    [scratch] = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "tmp"]
    process = 350 << 20  # what the ViT-Small may take after 1,000 requests
    limit = spec["containers"][0]["resources"]["limits"]["memory"]
    assert in_bytes(limit) >= allowed + in_bytes(scratch["sizeLimit"]) + process
    assert in_bytes(spec["containers"][0]["resources"]["requests"]["memory"]) >= process


def in_bytes(quantity: str) -> int:
    """A quantity of Kubernetes, such as 512Mi, in bytes."""
    return int(quantity[:-2]) << {"Mi": 20, "Gi": 30}[quantity[-2:]]


def test_the_two_deployments_differ_only_in_what_a_gpu_changes() -> None:
    gpu, cpu = (documents(name) for name in DEPLOYMENTS)
    assert cpu["Service"] == gpu["Service"]
    assert cpu["PodDisruptionBudget"] == gpu["PodDisruptionBudget"]
    for found in (gpu, cpu):
        del found["HorizontalPodAutoscaler"]["spec"]["metrics"]
        del found["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]  # a spare GPU is dear
        spec = found["Deployment"]["spec"]["template"]["spec"]
        for field in ("image", "resources", "startupProbe"):
            del spec["containers"][0][field]
        for volume in spec["volumes"]:
            del volume["emptyDir"]["sizeLimit"]
    env = cpu["Deployment"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert env.pop(0)["name"] == "FREQMERGE_THREADS"
    assert cpu["HorizontalPodAutoscaler"] == gpu["HorizontalPodAutoscaler"]
    assert cpu["Deployment"] == gpu["Deployment"]


@pytest.mark.parametrize("name", PODS)
def test_what_kubernetes_and_the_files_put_into_the_environment_are_settings(name: str) -> None:
    spec = PODS[name]
    assert spec["enableServiceLinks"] is False
    environment = {one["name"]: "x" for one in spec["containers"][0].get("env", [])}
    assert unknown_variables(environment) == []
    service = documents("deployment.yml")["Service"]["metadata"]["name"].upper().replace("-", "_")
    links = {f"{service}_SERVICE_HOST": "10.0.0.1", f"{service}_PORT": "tcp://10.0.0.1:80"}
    assert f"{service}_PORT" != f"{PREFIX}PORT"
    assert unknown_variables(links) == []


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_service_budget_and_autoscaler_select_the_deployment_and_the_autoscaler_alone_counts(name: str) -> None:
    found = documents(name)
    deployment = found["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["minReplicas"] >= 2
    assert "replicas" not in deployment["spec"], "applied again, it would take back what the autoscaler has decided"


def test_on_gpus_the_autoscaler_asks_for_a_metric_of_ours_and_on_cpus_for_the_processor(app: Any) -> None:
    gpu, cpu = (documents(name)["HorizontalPodAutoscaler"]["spec"]["metrics"] for name in DEPLOYMENTS)
    assert gpu[0]["pods"]["metric"]["name"] in metric_names(app.state.service.metrics.registry)
    assert cpu == [
        {
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
        }
    ]


def test_the_ray_service_names_an_application_that_ray_and_the_settings_take() -> None:
    service = documents("rayservice.yml")["RayService"]
    assert service["apiVersion"] == "ray.io/v1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own use of pydantic
        from ray.serve.schema import ServeDeploySchema

        import service.ray_app as module
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = config.applications
    path, _, builder = application.import_path.partition(":")
    assert path == module.__name__
    bound = getattr(module, builder)(application.args)
    ingress = bound._bound_deployment
    engine = ingress.init_args[0]._bound_deployment
    gpus = sum(
        group["replicas"] * group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    )
    assert engine.num_replicas * engine.ray_actor_options["num_gpus"] == gpus


def test_the_ray_version_is_that_of_image_and_lock() -> None:
    version = documents("rayservice.yml")["RayService"]["spec"]["rayClusterConfig"]["rayVersion"]
    dockerfile = (FOLDER / "ray.Dockerfile").read_text(encoding="utf-8")
    assert f"rayproject/ray:{version}-" in dockerfile
    lock = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    assert re.search(r"^ray(\[\w+])?==(\S+)", lock, re.MULTILINE)[2] == version  # type: ignore[index]


def test_the_inference_service_is_a_custom_predictor_in_standard_mode() -> None:
    service = documents("inferenceservice.yml")["InferenceService"]
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert predictor()["containers"][0]["name"] == "kserve-container"
