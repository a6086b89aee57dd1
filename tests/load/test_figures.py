"""The parts of the benchmark that need no server: answers on the wire, figures, schedule, goals, tables."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.forms import several_files
from tests.load import goals, load_records, markdown_tables, scrape, tables
from tests.load.comparison import turned
from tests.load.costed_engine import Cost, CostedEngine, costed_loader
from tests.load.figures import Sample, middle, percentile, summary
from tests.load.loops import due_times
from tests.load.raw_http import Answer, AnswerReader, WireError, multipart, request
from tests.load.sample_pictures import photos
from tests.load.soak.growth import LIMIT_BYTES, growth
from tests.load.targets import OURS, PEERS
from tests.service.conftest import running

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
LAST = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
ANSWERS = [Answer(200, b"hello", False), Answer(201, b"hello", False), Answer(503, b"", True)]


@given(st.lists(st.integers(1, 40), max_size=30))
def test_answers_are_read_however_the_network_cuts_them(cuts: list[int]) -> None:
    stream, reader, read = PLAIN + CHUNKED + LAST, AnswerReader(), []
    for cut in cuts:
        read += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert read + list(reader.feed(stream)) == ANSWERS


def test_an_interim_answer_is_skipped() -> None:
    assert list(AnswerReader().feed(b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN)) == ANSWERS[:1]


@pytest.mark.parametrize("text", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"])
def test_what_is_no_answer_with_a_length_is_an_error(text: bytes) -> None:
    with pytest.raises(WireError, match="expected"):
        list(AnswerReader().feed(text))


def test_a_request_names_its_length() -> None:
    assert request("POST", "/classify", "here", b"abc", {"Content-Type": "image/png"}) == (
        b"POST /classify HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\nabc"
    )
    assert request("GET", "/live", "here") == b"GET /live HTTP/1.1\r\nHost: here\r\n\r\n"


def test_the_service_reads_the_forms_of_the_client() -> None:
    body, media_type = multipart([b"one", b"two\r\n--freqmerge-bench-boundary--"])
    parts = several_files(body, media_type.partition("boundary=")[2].encode(), 64)
    assert [part.data for part in parts] == [b"one", b"two\r\n--freqmerge-bench-boundary--"]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([7.0], 99) == 7
    assert math.isnan(percentile([], 50))


def test_a_summary_counts_good_answers_in_time_and_keeps_refusals_apart() -> None:
    good = [Sample(at_s=0.1 * number, latency_s=0.010, status=200) for number in range(1, 11)]
    late = Sample(at_s=2.5, latency_s=0.5, status=200)
    refused = Sample(at_s=0.5, latency_s=0.001, status=429)
    found = summary([*good, late, refused], seconds=2.0, images=4)
    assert found["images_per_s"] == 20
    assert found["p50_ms"] == 10
    assert found["p99_ms"] == 500
    assert found["statuses"] == {"200": 11, "429": 1}
    assert found["refused"]["p99_ms"] == 1


def test_rounds_give_medians_and_the_spread() -> None:
    rounds = [
        {"images_per_s": rate, "p99_ms": 9.0, "refused": {"p50_ms": rate}, "statuses": {"200": 2}} for rate in (3, 1, 2)
    ]
    found = middle([*rounds[:2], rounds[2] | {"only": 1}])
    assert found["images_per_s"] == 2
    assert found["images_per_s_range"] == [1, 3]
    assert found["refused"] == {"p50_ms": 2}
    assert found["statuses"] == {"200": 6}
    assert "only" not in found


def test_an_open_loop_sends_at_constant_intervals() -> None:
    assert list(due_times(rate=4, seconds=1.5)) == [0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_the_fake_engine_takes_as_long_as_its_cost_says() -> None:
    cost = Cost(base_s=0.002, per_image_s=0.0001)
    assert cost.batch_s(64) == pytest.approx(0.0084)
    assert cost.images_per_s(64) == pytest.approx(64 / 0.0084)
    output = CostedEngine(Cost(0, 0)).run(np.zeros((3, 3, 32, 32), np.uint8))
    assert [len(part) for part in output] == [3, 3, 3]


def test_stages_are_means_between_two_scrapes() -> None:
    def told(sum_s: float, count: int, images: int) -> scrape.Scrape:
        return scrape.parse(
            "# TYPE freqmerge_stage_duration_seconds histogram\n"
            f'freqmerge_stage_duration_seconds_bucket{{le="+Inf",stage="read"}} {count}\n'
            f'freqmerge_stage_duration_seconds_count{{stage="read"}} {count}\n'
            f'freqmerge_stage_duration_seconds_sum{{stage="read"}} {sum_s}\n'
            "# TYPE freqmerge_batch_size histogram\n"
            f'freqmerge_batch_size_bucket{{le="+Inf"}} {count}\n'
            f"freqmerge_batch_size_count {count}\n"
            f"freqmerge_batch_size_sum {images}\n"
        )

    before, after = told(0.5, 10, 10), told(0.6, 20, 60)
    assert scrape.stage_means_us(before, after) == {"read": 10_000}
    assert scrape.mean_batch(before, after) == 5
    assert scrape.stage_means_us(after, after) == {}


def test_every_round_starts_with_another_server() -> None:
    targets = (OURS, *PEERS)
    assert [turned(targets, number)[0] for number in range(6)] == [*targets, OURS]
    assert turned(targets, 3) == (*targets[3:], *targets[:3])


def peer(server: str, rate: float, p99_ms: float) -> dict[str, Any]:
    fields = {"p50_ms": 1.0, "server_cpu_us": 300, "rss_mib": 100, "statuses": {"200": 9, "503": 1}}
    return {
        "kind": "peer",
        "server": server,
        "label": server,
        "concurrency": 64,
        "images_per_s": rate,
        "images_per_s_range": [rate, rate],
        "p99_ms": p99_ms,
        **fields,
    }


def verdict(found: list[dict[str, Any]], words: str) -> goals.Verdict:
    return next(one for one in goals.verdicts(found) if words in one.goal)


@pytest.mark.parametrize(
    ("ours", "met"), [((900.0, 9.0), True), ((900.0, 11.0), False), ((400.0, 9.0), False), ((500.0, 10.0), False)]
)
def test_ahead_means_more_images_and_a_lower_p99_than_every_peer(ours: tuple[float, float], met: bool) -> None:
    found = [peer("freqmerge", *ours), peer("litserve", 500, 10), peer("bare", 100, 50)]
    assert verdict(found, "at 64 clients").met is met


def test_a_peer_that_answered_nothing_is_beaten() -> None:
    silent = {name: value for name, value in peer("rayserve", 0, 0).items() if name != "p99_ms"}
    assert verdict([peer("freqmerge", 10, 1), silent, peer("bare", 5, 2)], "at 64 clients").met is True
    only = verdict([peer("freqmerge", 10, 1), silent], "at 64 clients")
    assert only.met is True


def test_cpu_leaves_decoding_out() -> None:
    found = [
        {"kind": "decode", "cpu_us": 150.0},
        {"kind": "closed", "server": "freqmerge", "concurrency": goals.AT, "server_cpu_us": 501},
    ]
    assert verdict(found, "server CPU")[2:] == ("351 µs", False)
    assert verdict([found[0] | {"cpu_us": 151.0}, found[1]], "server CPU").met is True


def test_goals_that_were_not_measured_say_so() -> None:
    assert {one.measured for one in goals.verdicts([])} == {"not measured"}
    assert {one.met for one in goals.verdicts([])} == {None}


def test_twice_litserve_is_judged_by_the_ratio() -> None:
    assert verdict([peer("freqmerge", 999, 1), peer("litserve", 500, 1)], "LitServe")[2:] == ("2.00×", False)
    assert verdict([peer("freqmerge", 1000, 1), peer("litserve", 500, 1)], "LitServe").met is True


def test_the_page_gets_its_tables_from_the_records(tmp_path: Path) -> None:
    page = "before\n<!-- bench: peers -->\nold\n<!-- end -->\nafter <!-- bench: soak -->\n<!-- end -->\n"
    load_records.write("service_bench", "the command", [peer("bare", 123.4, 5.6)], tmp_path)
    filled = tables.fill(page, tmp_path)
    assert "| bare | 64 | 123 | 123 to 123 | 1.0 | 5.6 | 300 | 100 | 1 |" in filled
    assert "`the command` on " in filled
    assert "old" not in filled
    assert "Not run yet." in filled
    assert tables.fill(filled, tmp_path) == filled


def test_the_tables_of_the_docs_are_those_of_the_records() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.fill(page, load_records.RESULTS) == page


def test_a_run_of_some_layouts_keeps_the_records_of_the_others(tmp_path: Path) -> None:
    def layouts(*values: tuple[str, int]) -> list[dict[str, Any]]:
        return [{"layout": layout, "images_per_s": rate} for layout, rate in values]

    for command, results in (("first", layouts(("1x1", 1), ("2x1", 2))), ("second", layouts(("2x1", 3), ("4x1", 4)))):
        load_records.merge("scale", command, results, lambda one: one["layout"], tmp_path)
    found = [(one["layout"], one["images_per_s"], one["command"]) for one in load_records.read("scale", tmp_path)]
    assert found == [("1x1", 1, "first"), ("2x1", 3, "second"), ("4x1", 4, "second")]


def test_layouts_stand_below_the_single_process_and_a_killed_replica_is_told_by_what_clients_got() -> None:
    figures = {"images_per_s": 94.4, "p50_ms": 1, "p99_ms": 2, "server_cpu_us": 3, "machine_busy_share": 0.5}
    one = {
        "kind": "layout",
        "load": "engine",
        "haproxy": False,
        "rss_mib": 4,
        "statuses": {"200": 9, "503": 1},
        **figures,
    }
    text = markdown_tables.scale(
        [one | {"layout": "2x1"}, one | {"layout": "single"}, one | {"layout": "2x1", "haproxy": True}]
    )
    assert text.splitlines()[2:] == [
        "| engine | single process |  | 94 | 1.0 | 2.0 | 3 | 50 % | 4 | 1 |",
        "| engine | 2 | 1 | 94 | 1.0 | 2.0 | 3 | 50 % | 4 | 1 |",
        "| engine, HAProxy | 2 | 1 | 94 | 1.0 | 2.0 | 3 | 50 % | 4 | 1 |",
    ]
    statuses = {"200": 90, "503": 6, "0": 4}
    kill = {"kind": "kill", "killed": "engine", "clients": 64, "requests": 100, "statuses": statuses, "longest_ms": 7}
    assert markdown_tables.kills([kill]).splitlines()[2] == "| one of two: engine | 64 | 100 | 90 | 6 | 4 | 7.0 |"


def test_a_table_is_markdown() -> None:
    assert markdown_tables.table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"


def test_memory_that_levels_off_holds_and_memory_that_rises_does_not() -> None:
    noise = random.Random(0)
    settled = [min(number, 300) * (1 << 20) + noise.randrange(1 << 22) for number in range(1200)]
    assert growth(settled).holds
    rising = [number * (LIMIT_BYTES // 300) for number in range(1200)]
    assert not growth(rising).holds
    with pytest.raises(ValueError, match="at least 20 samples"):
        growth([1] * 19)


@pytest.mark.anyio
@pytest.mark.parametrize("view", ["overlay", "merged", "panel"])
async def test_the_model_of_known_cost_answers_every_route_that_load_is_put_on(view: str) -> None:
    async with running(costed_loader(Cost(0, 0))) as app:
        answer = await app.client.post("/classify", content=photos()[0], headers={"Content-Type": "image/jpeg"})
        query = {"image_id": answer.json()["image_id"]}
        assert (await app.client.get("/heatmap", params={**query, "view": view})).status_code == 200
        numbers = await app.client.get("/heatmap", params={**query, "format": "json"})
        assert [merge["tokens"] for merge in numbers.json()["merges"]] == [196] * 4
