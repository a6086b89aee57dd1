"""Prints the one dashboard: `python docker/grafana/make_dashboard.py > docker/grafana/dashboards/freqmerge.json`."""

from __future__ import annotations

import json
import sys

from panels import DATASOURCE, Json, Row, bars, graph, laid_out, mean, quantiles, stat, table

REAL_TRAFFIC = 'route!~"/live|/ready|/metrics|/v2/.*(live|ready)"'
"""Not what probes and Prometheus ask for."""
REQUESTS = f"freqmerge_http_requests_total{{SELECTED, {REAL_TRAFFIC}}}"
DURATION = "freqmerge_http_request_duration_seconds"
STAGES = "freqmerge_stage_duration_seconds"
CLASSIFY = ', route="/classify"'


def worse(warning: float, bad: float) -> tuple[tuple[float | None, str], ...]:
    """Colours of a number that should be small."""
    return (None, "green"), (warning, "orange"), (bad, "red")


def at_a_glance() -> Row:
    """What tells in a second whether all is well."""
    alerts = 'count(ALERTS{alertname=~"FreqMerge.*", alertstate="firing"}) or vector(0)'
    answered = 'sum(rate(freqmerge_images_total{SELECTED, outcome="answered"}[$window]))'
    failures = f'freqmerge_http_requests_total{{SELECTED, {REAL_TRAFFIC}, code=~"5.."}}'
    errors = f"(sum(rate({failures}[$window])) or vector(0)) / sum(rate({REQUESTS}[$window]))"
    [(p99, _)] = quantiles(DURATION, "", CLASSIFY, (0.99,))
    queue = "max(freqmerge_queue_images{SELECTED} / freqmerge_queue_limit_images{SELECTED})"
    ready_steps = ((None, "red"), (1, "green"))
    alert_steps = ((None, "green"), (1, "red"))
    meaning = "Firing now; what each means is in docs/guide/alerts.md."
    panels = [
        stat("Ready", "sum(freqmerge_ready{SELECTED})", "short", "Processes that answer pictures.", ready_steps),
        stat("Alerts", alerts, "short", meaning, alert_steps),
        stat("Images", answered, "ops", "Pictures answered per second."),
        stat("Errors", errors, "percentunit", "Share of requests answered with 5xx.", worse(0.01, 0.05)),
        stat("Latency p99", p99, "s", "POST /classify, headers to end of answer.", worse(0.5, 1)),
        stat("Queue", queue, "percentunit", "How full the fullest is; beyond it there is 429.", worse(0.5, 0.8)),
    ]
    return "At a glance", 4, panels


def traffic() -> Row:
    """Who asks for what, and what they get."""
    by_route = [(f"sum by (route) (rate({REQUESTS}[$window]))", "{{route}}")]
    by_code = [(f"sum by (code) (rate({REQUESTS}[$window]))", "{{code}}")]
    problems = [
        ("sum by (reason) (rate(freqmerge_rejected_total{SELECTED}[$window])) > 0", "{{reason}}"),
        ("sum(rate(freqmerge_rejected_total{SELECTED}[$window]))", "all"),
    ]
    in_flight = [
        ("sum by (instance, replica) (freqmerge_http_requests_in_flight{SELECTED})", "{{instance}} {{replica}}")
    ]
    panels = [
        graph("Requests by route", by_route, "reqps", "Without probes and scrapes.", stacked=True),
        graph("Requests by code", by_code, "reqps", "499 is a client that left.", stacked=True),
        graph("Problems by reason", problems, "ops", "Requests and files that ended with a problem document."),
        graph("Requests in flight", in_flight, "short", "Being answered now."),
    ]
    return "Traffic and errors", 8, panels


def latency() -> Row:
    """How long it takes, and where the time goes."""
    every_route = quantiles(DURATION, "route", f", {REAL_TRAFFIC}", (0.99,))
    stages = [mean(STAGES, "stage", "{{stage}}")]
    panels = [
        graph("POST /classify", quantiles(DURATION, "", CLASSIFY), "s", "Headers to end of answer."),
        graph("Every route, p99", every_route, "s", "Headers to end of answer."),
        graph("Where the time goes", stages, "s", "Mean time per request that passes the stage.", stacked=True),
        graph("Stages, p99", quantiles(STAGES, "stage", "", (0.99,)), "s", "Waiting for a thread included."),
    ]
    return "Latency", 8, panels


def batches() -> Row:
    """What the batcher makes of it."""
    outcomes = [("sum by (outcome) (rate(freqmerge_images_total{SELECTED}[$window]))", "{{outcome}}")]
    sizes = [
        mean("freqmerge_batch_size", "instance, replica", "mean, {{instance}} {{replica}}"),
        *quantiles("freqmerge_batch_size", "", "", (0.5, 0.99)),
    ]
    queue = [
        ("sum by (instance, replica) (freqmerge_queue_images{SELECTED})", "{{instance}} {{replica}}"),
        ("min(freqmerge_queue_limit_images{SELECTED})", "limit"),
    ]
    busy = [
        (
            "sum by (instance, replica) (rate(freqmerge_executor_busy_seconds_total{SELECTED}[$window]))",
            "{{instance}} {{replica}}",
        )
    ]
    panels = [
        graph("Throughput", outcomes, "ops", "Images per second, by how they ended.", stacked=True),
        graph("Batch size", sizes, "short", "Images per batch. One under load is a fault."),
        graph("Queue", queue, "short", "Images being decoded or waiting for a batch."),
        graph("Engine busy", busy, "percentunit", "Share of the time in which a batch ran."),
    ]
    return "Batches and queue", 8, panels


def decoder() -> Row:
    """What pictures cost that are made to be slow, or are just large."""
    [(p99, _)] = quantiles("freqmerge_decoding_memory_wait_seconds", "", "", (0.99,))
    waits = [
        (
            "max by (instance, replica) (freqmerge_decode_wait_seconds{SELECTED})",
            "{{instance}} {{replica}}",
        ),
        (p99, "for memory p99"),
    ]
    costly = [
        ("sum by (instance, replica) (freqmerge_costly_images{SELECTED})", "{{instance}} {{replica}}"),
        ("min(freqmerge_costly_limit_images{SELECTED})", "limit"),
        (
            "sum by (instance, replica) (freqmerge_decoding_memory_waiting_images{SELECTED})",
            "wait for memory, {{instance}} {{replica}}",
        ),
    ]
    ended = [
        ("sum by (reason) (rate(freqmerge_decodes_killed_total{SELECTED}[$window]))", "ended: {{reason}}"),
        ('sum(rate(freqmerge_rejected_total{SELECTED, reason="too_costly"}[$window]))', "refused: too_costly"),
    ]
    waited = "Longest wait for a thread, process or memory to decode. At 5 s, by default, the service is not ready."
    killed = "cpu: it took too long. abandoned: nobody waited any more. silent, died: look into the log."
    panels = [
        graph("Wait for the decoder", waits, "s", waited),
        graph(
            "Costly pictures",
            costly,
            "short",
            "Processes that decode a large or slow picture: at the limit, others wait. And who waits for memory.",
        ),
        graph("Decodes ended early", ended, "ops", killed),
        graph("Decoding", quantiles(STAGES, "", ', stage="decode"'), "s", "Time per request, the wait included."),
    ]
    return "Decoder", 8, panels


def model() -> Row:
    """What is served, and what it sees."""
    frequent = "topk(15, sum by (label) (increase(freqmerge_predictions_total{SELECTED}[$__range])))"
    over_time = [("topk(8, sum by (label) (rate(freqmerge_predictions_total{SELECTED}[$window])))", "{{label}}")]
    columns = ("instance", "replica", "name", "digest", "engine", "device", "precision", "keep_rate", "version")
    shift = "Images per second by most probable label; a shift here is a shift of the input or of the model."
    panels = [
        bars("Classes predicted", frequent, "{{label}}", "Most frequent labels in the time range above."),
        graph("Classes over time", over_time, "ops", shift),
        table("Models that are served", "freqmerge_model_info{SELECTED}", columns, "As GET /model says."),
    ]
    return "Model", 10, panels


def process() -> Row:
    """What it costs."""
    cpu = [
        ("sum by (instance, replica) (rate(process_cpu_seconds_total{SELECTED}[$window]))", "{{instance}} {{replica}}")
    ]
    memory = [
        ("sum by (instance, replica) (process_resident_memory_bytes{SELECTED})", "{{instance}} {{replica}}"),
        ("sum by (instance, replica) (freqmerge_stored_bytes{SELECTED})", "recent images, {{instance}} {{replica}}"),
        ("sum by (instance, replica) (freqmerge_decoding_bytes{SELECTED})", "being decoded, {{instance}} {{replica}}"),
        ("sum by (instance, replica) (freqmerge_body_bytes{SELECTED})", "request bodies, {{instance}} {{replica}}"),
    ]
    gpu = [
        (
            "sum by (instance, replica, state) (freqmerge_gpu_memory_bytes{SELECTED})",
            "{{state}}, {{instance}} {{replica}}",
        )
    ]
    lag = quantiles("freqmerge_event_loop_lag_seconds", "", "", (0.5, 0.99))
    late = "How late a timer fires; high where something computes on the loop or the cores are taken."
    panels = [
        graph("CPU", cpu, "short", "Cores in use."),
        graph("Memory", memory, "bytes", "Resident memory, and the pictures in it."),
        graph("GPU memory", gpu, "bytes", "Of the whole GPU, whoever uses it. Empty without one.", stacked=True),
        graph("Event loop lag", lag, "s", late),
    ]
    return "Process", 8, panels


def choice(name: str, label: str, values: str) -> Json:
    """A variable that takes any number of a label's values. All of them are also those that have no such label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": values,
        "query": {"query": values, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "sort": 1,
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }


def variables() -> list[Json]:
    """The choices at the top: which processes, which replicas of Ray Serve, and over which window rates are taken."""
    windows = ("1m", "5m", "15m", "1h")
    replicas = 'label_values(freqmerge_queue_images{job="freqmerge", instance=~"$instance"}, replica)'
    return [
        choice("instance", "Process", 'label_values(freqmerge_ready{job="freqmerge"}, instance)'),
        choice("replica", "Replica", replicas),
        {
            "name": "window",
            "label": "Rates over",
            "type": "interval",
            "query": ",".join(windows),
            "auto": False,
            "options": [{"selected": value == "5m", "text": value, "value": value} for value in windows],
            "current": {"selected": True, "text": "5m", "value": "5m"},
        },
    ]


def dashboard() -> Json:
    """The whole, as Grafana's files hold it."""
    firing = {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": DATASOURCE,
        "expr": 'ALERTS{alertname=~"FreqMerge.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
        "step": "60s",
    }
    return {
        "uid": "freqmerge",
        "title": "FreqMerge",
        "tags": ["freqmerge"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": [firing]},
        "templating": {"list": variables()},
        "links": [],
        "panels": laid_out([at_a_glance(), traffic(), latency(), batches(), decoder(), model(), process()]),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=1) + "\n")
