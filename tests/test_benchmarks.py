"""The benchmark's arithmetic, on a server whose every answer and every tick of the clock is known."""

import asyncio
import io
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from rich.console import Console

import engine
from client import Reply, RequestFailedError, Target, chat, get
from compare import arguments, turns
from display import comparison, number, table
from peers import PEERS, Peer, PeerError, Running, parse, running
from prompts import Prompts
from results import Quantity, Results, Sample, Summary
from scenarios import TURNS, Scenario, catalogue, fairness, measured, percentile, slowdown, throughput, warm_up
from streams import streaming, touching, within

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
USAGE = {"prompt_tokens": 200, "completion_tokens": 4}
T = TypeVar("T")
ANSWER = ["", "one", " two", " three", " four"]


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def event_stream(texts: Iterable[str] = ANSWER, usage: dict[str, int] | None = USAGE) -> bytes:
    documents = [chunk(text) for text in texts] + ([{"choices": [], "usage": usage}] if usage else [])
    data = "".join(f"data: {json.dumps(document)}\n\n" for document in documents)
    return f": keep-alive\n\n{data}data: [DONE]\n\n".encode()


def in_chunks(body: bytes, size: int = 7) -> bytes:
    """HTTP's chunked encoding, cut where no event ends."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def with_fake_server(answer: bytes, use: Callable[[Target], Awaitable[T]], ticks: Iterable[float] | None = None) -> T:
    """Run something against a server that gives one answer, with a clock that shows one time after another."""
    clock = iter(ticks or itertools.count())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        await reader.readexactly(length)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def run() -> T:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await use(Target("127.0.0.1", port, "m", timeout=5, clock=lambda: next(clock)))

    return asyncio.run(run())


PLAIN = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event_stream()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(event_stream())


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED], ids=["until it closes", "chunked"])
def test_times_and_counts_of_one_answer(answer: bytes) -> None:
    # Sent at 10; four pieces of text at 12, 12.5, 13 and 13.5 (the empty first one does not count); ended at 14.
    reply = with_fake_server(answer, lambda target: chat(target, "hi", 4), ticks=[10, 12, 12.5, 13, 13.5, 14])
    assert reply == Reply(
        sent=10, first=12, last=13.5, done=14, prompt_tokens=200, completion_tokens=4, text="one two three four"
    )
    assert reply.time_to_first_token == 2
    assert reply.decode_rate == 2  # three tokens after the first, in 1.5 s


def test_counts_come_from_usage_not_from_chunks() -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + event_stream(["several tokens ", "in a chunk"], USAGE)
    reply = with_fake_server(answer, lambda target: chat(target, "hi", 4), ticks=[0, 1, 2, 2])
    assert reply.completion_tokens == 4
    assert reply.decode_rate == 3


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nlater", "HTTP/1.1 503 Busy: late"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + event_stream(usage=None), "no token counts"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + event_stream([]), "no text"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"message": "broken"}}\n\n', "server broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n: keep-\r\n", "connection broke off"),
    ],
)
def test_an_answer_that_cannot_be_measured_is_an_error(answer: bytes, told: str) -> None:
    with pytest.raises(RequestFailedError, match=told):
        with_fake_server(answer, lambda target: chat(target, "hi", 4))


def test_arrivals_are_told_while_they_come() -> None:
    arrivals: list[float] = []
    with_fake_server(CHUNKED, lambda target: chat(target, "hi", 4, arrivals), ticks=[0, 1, 2, 4, 8, 9])
    assert arrivals == [1, 2, 4, 8]


def test_cached_tokens_and_the_answers_own_text_are_read() -> None:
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}
    data = b"data: %s\n\n" % json.dumps(thought).encode()
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 160}}
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + data + event_stream(usage=usage)
    reply = with_fake_server(answer, lambda target: chat(target, "hi", 4), ticks=range(9))
    assert (reply.first, reply.cached_tokens, reply.text) == (1, 160, "one two three four")


def test_one_token_has_no_decode_rate() -> None:
    with pytest.raises(RequestFailedError, match="too short"):
        _ = Reply(0, 1, 1, 1, 10, 1).decode_rate


def test_throughput_counts_all_tokens_from_the_first_request_to_the_last_end() -> None:
    replies = [Reply(0.0, 1.0, 2.0, 2.0, 200, 30), Reply(0.5, 3.0, 4.0, 4.0, 200, 50)]
    sample = throughput(replies)
    assert sample.value == 20  # 80 tokens in 4 s
    assert sample.details["seconds"] == 4
    assert sample.details["prompt_tokens"] == 400
    assert sample.details["worst_first_token"] == 2.5


def test_scenarios_ask_for_what_they_measure() -> None:
    scenarios = catalogue(4)
    assert list(scenarios) == [
        *("ttft_200", "ttft_700", "decode", "throughput_1", "throughput_8", "throughput_16"),
        *("prefix_hit", "growing_conversation", "short_behind_long", "fairness_1", "fairness"),
    ]

    def value(name: str) -> float:
        async def run(target: Target) -> Sample:
            return await scenarios[name].run(target, Prompts("a"))

        return with_fake_server(CHUNKED, run, [0, 2, 3, 4, 5, 6]).value

    assert value("ttft_200") == 2
    assert value("decode") == 1
    assert value("throughput_1") == 4 / 6


def test_a_failing_client_fails_the_measurement() -> None:
    answer = b"HTTP/1.1 500 Oops\r\n\r\n"
    with pytest.raises(RequestFailedError, match="500"):
        with_fake_server(answer, lambda target: catalogue(4)["throughput_8"].run(target, Prompts("a")))


def test_what_the_client_and_waiting_servers_use_is_noted() -> None:
    async def use(target: Target) -> Sample:
        waiting = Running(Peer("waiting"), target)
        waiting.cpu_seconds = iter([1.0, 3.5]).__next__  # type: ignore[method-assign]
        return await measured(catalogue(4)["decode"], Running(Peer("fake"), target), [waiting], Prompts("a"))

    details = with_fake_server(CHUNKED, use, [0, 2, 3, 4, 5, 6]).details
    assert details["waiting_cpu_s"] == 2.5
    assert details["client_cpu_s"] > 0
    assert details["wall_s"] > 0


def test_prompts_differ_from_their_beginning_and_repeat_exactly() -> None:
    prompts = [Prompts(f"run {repeat}").of(200, client) for repeat in range(3) for client in range(16)]
    assert len({prompt[:40] for prompt in prompts}) == len(prompts)
    assert Prompts("run 0").of(200, 3) == prompts[3]


def test_the_template_is_part_of_a_prompts_length() -> None:
    overhead = with_fake_server(CHUNKED, warm_up)
    assert overhead == 150  # the server counted 200 tokens where 50 words were sent
    assert len(Prompts("a", overhead).of(200).split()) == len(Prompts("a").of(50).split())


def results_of(values: dict[str, list[float]], better: str) -> tuple[Results, Scenario]:
    scenario = catalogue(4)["decode" if better == "higher" else "ttft_200"]
    results = Results([scenario], list(values))
    for server, numbers in values.items():
        for value in numbers:
            results.add(scenario, server, Sample(value))
    return results, scenario


def test_ratios_are_of_medians_and_above_one_when_the_first_is_better() -> None:
    results, rate = results_of({"ours": [30, 10, 20], "theirs": [5, 4, 90]}, better="higher")
    assert results.summary(rate, "ours") == Summary(20, 10, 30)
    assert results.ratio(rate, "theirs") == 4
    results, seconds = results_of({"ours": [2.0], "theirs": [3.0]}, better="lower")
    assert results.ratio(seconds, "theirs") == 1.5
    assert results.ratio(seconds, "nobody") is None


def test_results_are_shown_and_written_with_what_failed() -> None:
    results, rate = results_of({"ours": [30, 10, 20], "theirs": [40.0]}, better="higher")
    results.add(rate, "theirs", "it broke")
    console = Console(file=io.StringIO(), width=120)
    console.print(table(results))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "20.0 tok/s (10.0–30.0)" in shown
    assert "failed" in shown
    assert "2.00× worse" in shown
    (written,) = json.loads(json.dumps(results.as_json()))
    assert written["ratios"] == {"theirs": 0.5}
    assert [sample["value"] for sample in written["servers"]["ours"]["samples"]] == [30, 10, 20]
    assert written["servers"]["theirs"]["failures"] == ["it broke"]


def test_numbers_read_well() -> None:
    assert [number(n) for n in (0.1234, 5.678, 43.21, 1234.5)] == ["0.12", "5.68", "43.2", "1234"]
    assert [comparison(ratio) for ratio in (None, 17.31, 0.5)] == ["", "17.3× better", "2.00× worse"]


def test_servers_take_turns_and_another_one_begins_each_repeat() -> None:
    servers = [Running(Peer(name), Target("", 0)) for name in "ab"]
    order = [
        (repeat, server.name, [other.name for other in others])
        for repeat, _, server, others in turns([catalogue(4)["decode"]], servers, 2)
    ]
    assert order == [(0, "a", ["b"]), (0, "b", ["a"]), (1, "b", ["a"]), (1, "a", ["b"])]


# --- A server that remembers what it was asked, and whose streams go on until the client hangs up ---------------------


@dataclass
class Scripted:
    """Answers requests for a few tokens at once, other ones with a piece of text every ``pause`` seconds."""

    pause: float = 0.002
    stall: float = 0.0
    """Seconds for which nothing comes for anybody while a short answer is prepared."""
    pieces: int = 1 << 30
    """After so many a stream ends."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    hung_up: int = 0
    _free: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: set[asyncio.Task[Any]] = field(default_factory=set)

    def use(self, work: Callable[[Target], Awaitable[T]]) -> T:
        """Run something against it."""

        async def run() -> T:
            self._free.set()
            async with await asyncio.start_server(self.answer, "127.0.0.1", 0) as server:
                try:
                    return await work(Target("127.0.0.1", server.sockets[0].getsockname()[1], "m", timeout=20))
                finally:
                    await asyncio.wait(self._answers, timeout=5)

        return asyncio.run(run())

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._answers.add(task)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        self.asked.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            await (self.brief(writer) if self.asked[-1]["max_tokens"] < 100 else self.endless(writer))
        except ConnectionError:
            self.hung_up += 1
        writer.close()

    async def brief(self, writer: asyncio.StreamWriter) -> None:
        self._free.clear()
        await asyncio.sleep(self.stall)
        self._free.set()
        cached = 64 * (len(self.asked) - 1)
        writer.write(event_stream(["text"], {**USAGE, "prompt_tokens_details": {"cached_tokens": cached}}))  # type: ignore[dict-item]

    async def endless(self, writer: asyncio.StreamWriter) -> None:
        for _ in range(self.pieces):
            await self._free.wait()
            writer.write(b"data: %s\n\n" % json.dumps(chunk("more")).encode())
            await writer.drain()
            await asyncio.sleep(self.pause)
        writer.write(event_stream([], USAGE))


def test_fairness_sees_a_server_that_stops_for_a_long_prompt() -> None:
    server = Scripted(stall=0.3)
    sample = server.use(lambda target: fairness(2, 500)(target, Prompts("a")))
    details = sample.details
    assert details["long_first_token"] >= 0.3
    # Both streams stood still for about as long as the prompt took, and went on before the measurement ended.
    assert details["during_worst_ms"] >= 290
    assert details["quiet_p95_ms"] < 100
    assert sample.value == details["during_p95_ms"] / details["quiet_p95_ms"] > 2
    assert server.hung_up == 2
    assert len(server.asked[-1]["messages"][0]["content"].split()) >= 500


def test_clients_begin_another_answer_when_one_ends() -> None:
    server = Scripted(pieces=3)

    async def read(target: Target) -> list[list[int]]:
        async with streaming(target, Prompts("a"), 2) as streams:
            await streams.progress(7)
            assert all(after >= before for before, after in streams.gaps)
            return [[len(arrivals) for arrivals in answers] for answers in streams.answers]

    counts = server.use(read)
    assert all(len(answers) >= 3 and answers[:2] == [3, 3] for answers in counts)
    prompts = {asked["messages"][0]["content"] for asked in server.asked}
    assert len(prompts) == len(server.asked)


def test_a_broken_stream_fails_the_measurement() -> None:
    answer = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nlater"
    with pytest.raises(RequestFailedError, match="503"):
        with_fake_server(answer, lambda target: fairness(2, 500)(target, Prompts("a")))


def test_gaps_belong_to_a_window_or_touch_it() -> None:
    gaps = [(0, 1), (1, 3), (3, 10), (10, 11)]
    assert within(gaps, 0, 3) == [1, 2]
    assert within(gaps, 0.5, 9) == [2]
    assert touching(gaps, 4, 5) == [7]
    assert touching(gaps, 2, 10) == [2, 7]


def test_slowdown_is_of_95th_percentiles() -> None:
    assert percentile(range(1, 101), 0.95) == 96
    assert percentile([5.0], 0.95) == 5
    sample = slowdown([0.01] * 90 + [0.02] * 10, [0.03] * 90 + [0.05] * 10, {"answers": 4})
    assert sample.value == 2.5
    assert sample.details["during_median_ms"] == 30
    assert sample.details["answers"] == 4
    with pytest.raises(RequestFailedError, match="too few"):
        slowdown([], [0.1], {})


def test_a_prefix_comes_twice_with_another_question() -> None:
    server = Scripted()
    sample = server.use(lambda target: catalogue(4)["prefix_hit"].run(target, Prompts("a")))
    first, second = [asked["messages"] for asked in server.asked]
    assert first[0] == second[0]
    assert first[0]["role"] == "system"
    assert len(first[0]["content"].split()) == 1500
    assert first[1]["content"] != second[1]["content"]
    assert sample.details["cached_tokens"] == 64
    assert sample.details["cold_first_token"] > 0


def test_a_conversation_grows_by_its_own_answers() -> None:
    server = Scripted()
    sample = server.use(lambda target: catalogue(4)["growing_conversation"].run(target, Prompts("a")))
    asked = [request["messages"] for request in server.asked]
    assert [len(messages) for messages in asked] == [1, 3, 5, 7, 9, 11]
    assert asked[-1][:-2] == asked[-2]
    assert asked[-1][-2] == {"role": "assistant", "content": "text"}
    waits = [sample.details[f"turn_{turn}_first_token"] for turn in range(2, TURNS + 1)]
    assert sample.value == sorted(waits)[2]


def test_a_short_prompt_comes_right_behind_a_long_one() -> None:
    server = Scripted(stall=0.2)
    sample = server.use(lambda target: catalogue(4)["short_behind_long"].run(target, Prompts("a")))
    lengths = [len(request["messages"][0]["content"].split()) for request in server.asked]
    assert lengths[0] > 1500
    assert lengths[1] < 100
    assert sample.value >= 0.19
    assert sample.details["long_first_token"] >= 0.19


# --- The engine on its own ------------------------------------------------------------------------------------------


def test_a_metric_is_added_up_over_its_labels() -> None:
    text = '# HELP a_bytes x\na_bytes{tier="disk"} 1.5e+06\na_bytes{tier="memory"} 2\na_bytes_more{x="y"} 9\n'
    assert engine.metric(text, "a_bytes") == 1500002
    with pytest.raises(ValueError, match="nothing_bytes"):
        engine.metric(text, "nothing_bytes")


def test_together_decoding_counts_from_when_all_have_begun() -> None:
    sample = Scripted().use(lambda target: engine.decoding_together(target, Prompts("a")))
    assert sample.details["tokens"] >= engine.DECODERS * engine.DECODED
    assert sample.value == sample.details["tokens"] / sample.details["seconds"]


def part_of(figures: list[engine.Figure], failure: Exception | None = None) -> engine.Part:
    async def measure(bench: engine.Bench, seed: str) -> AsyncIterator[engine.Figure]:
        for figure in figures:
            yield figure
        if failure:
            raise failure

    quantities = (Quantity("one", "the one", "s", False), Quantity("other", "the other", "MB", False))
    return engine.Part("part", "Some part", quantities, ("a", "b"), measure)


def test_a_part_fills_its_table() -> None:
    console = Console(file=io.StringIO(), width=120)
    part = part_of([("one", "a", Sample(1.5)), ("other", "b", Sample(20))])
    results = asyncio.run(engine.measured(part, engine.Bench(Path("m")), 2, console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Some part" in shown
    assert "1.50 s" in shown
    assert "20.0 MB" in shown
    assert len(results.samples["one", "a"]) == 2
    assert not results.failures


def test_a_part_that_fails_says_why() -> None:
    console = Console(file=io.StringIO(), width=120)
    part = part_of([("one", "a", Sample(1.5))], RequestFailedError("no more"))
    results = asyncio.run(engine.measured(part, engine.Bench(Path("m")), 1, console))
    assert results.failures["one", "a"] == ["no more"]


def test_parts_are_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    names = [part.name for part in engine.arguments().parse_args([]).parts]
    assert names == ["disk", "memory", "kv_bits", "fairness", "grammar"]
    with pytest.raises(SystemExit):
        engine.arguments().parse_args(["--parts", "nonsense"])
    assert "'nonsense'" in capsys.readouterr().err


def test_a_measured_server_keeps_nothing_on_disk() -> None:
    assert PEERS["jackfield"].env["JACKFIELD_PREFIX_CACHE_DISK_BYTES"] == "0"


SERVER = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "served"}]}')
socketserver.TCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_peer_is_started_asked_for_its_model_and_stopped() -> None:
    peer = Peer("small", (sys.executable, "-c", SERVER, "{port}"), model="")

    async def run() -> Running:
        async with running(peer, Path("model"), 5) as server:
            assert json.loads(await get(server.target, "/health"))
            assert server.ended == ""
            assert server.cpu_seconds() > 0 or sys.platform != "linux"
            return server

    server = asyncio.run(run())
    assert server.target.model == "served"
    assert server.ended == " (the server ended with status -15)"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ((sys.executable, "-c", "raise SystemExit('no such model')"), "ended at once, with status 1\n.*no such model"),
        (("no-such-program",), "could not be started"),
    ],
)
def test_a_peer_that_does_not_start_says_why(command: tuple[str, ...], told: str) -> None:
    async def run() -> None:
        async with running(Peer("broken", command), Path("model"), 5):
            raise AssertionError("it cannot run")

    with pytest.raises(PeerError, match=told):
        asyncio.run(run())


def test_servers_and_scenarios_are_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = arguments().parse_args(["--servers", "jackfield,other=http://127.0.0.1:81"])
    assert [peer.name for peer in options.servers] == ["jackfield", "other"]
    assert parse("mlx_lm").model == "default_model"
    for wrong in (["--servers", "nonsense"], ["--scenarios", "decode,nonsense"]):
        with pytest.raises(SystemExit):
            arguments().parse_args(wrong)
        assert "'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "example"), [("compare.py", "--quick"), ("engine.py", "--parts disk,memory")])
def test_help_has_examples(script: str, example: str) -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / script, "--help"], capture_output=True, text=True, check=True)
    assert f"python benchmarks/{script} {example}" in done.stdout
    assert done.stderr == ""
