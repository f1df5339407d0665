"""In a server: scores go out with answers, to the log's records, to the metrics, and as events."""

import json
import math
from typing import Any

import pytest

from jackfield.testing import JackfieldServer, StartServer
from jackfield_confidence import Plugin
from jackfield_confidence.calibration import Calibration, Quality
from jackfield_confidence.factors import NAMES
from jackfield_confidence.store import Store

MODEL = "scripted"


def start(jackfield_server: StartServer, **settings: Any) -> JackfieldServer:
    return jackfield_server(("confidence", Plugin()), settings={"confidence": settings})


def confidence(reply: Any, choice: int = 0) -> dict[str, Any]:
    return dict(reply.extension["choices"][choice]["confidence"]["confidence"])


def scored(server: JackfieldServer, question: str, answer: str, logprob: float, **fields: Any) -> dict[str, Any]:
    server.says(answer, logprob=logprob)
    return confidence(server.chat(question, jackfield=True, **fields))


def test_the_score_goes_out_in_the_extension_object(jackfield_server):
    server = start(jackfield_server)
    found = scored(server, "What is the capital of Peru?", "Lima", -0.01)
    assert set(found["factors"]) == set(NAMES)
    assert found["factors"]["weakest"] == pytest.approx(math.exp(-0.01), abs=1e-3)
    assert found["label"] == "high"
    assert found["score"] > 0.8


def test_streams_have_it_in_the_end(jackfield_server):
    server = start(jackfield_server)
    whole = scored(server, "What is the capital of Peru?", "Lima", -0.7)
    assert scored(server, "What is the capital of Peru?", "Lima", -0.7, stream=True) == whole


def test_surer_answers_have_higher_scores_and_better_labels(jackfield_server):
    server = start(jackfield_server)
    found = [scored(server, "Who?", "Nobody knows", logprob) for logprob in (-0.01, -0.7, -3)]
    assert [one["label"] for one in found] == ["high", "medium", "low"]
    assert found[0]["score"] > found[1]["score"] > found[2]["score"]


def test_each_choice_has_its_own(jackfield_server):
    server = start(jackfield_server)
    server.says("Lima", logprob=-0.01)
    server.says("Cusco", logprob=-2)
    reply = server.chat("Which city?", n=2, jackfield=True)
    assert confidence(reply, 0)["score"] > confidence(reply, 1)["score"]


def test_an_answer_that_echoes_the_question_is_known_by_it(jackfield_server):
    server = start(jackfield_server)
    echo = scored(server, "What is the capital of Peru?", "It is Peru", -0.1)
    assert echo["factors"]["echo"] == 1
    assert scored(server, "What is the capital of Peru?", "It is Lima", -0.1)["factors"]["echo"] == 0
    assert scored(server, "Word " * 50, "Word", -0.1)["factors"]["echo"] == 0


def test_questions_are_not_looked_at_when_the_settings_say_so(jackfield_server):
    server = start(jackfield_server, question_words=0)
    assert scored(server, "What is the capital of Peru?", "Peru", -0.1)["factors"]["echo"] == 0


def test_questions_are_forgotten_when_they_are_answered(jackfield_server):
    server = start(jackfield_server)
    scored(server, "What is the capital of Peru?", "Lima", -0.1)
    server.record("completed")
    server.wait_until(lambda: not server.plugin("confidence")._questions._by_request)


def test_an_answer_that_was_cut_off_says_so(jackfield_server):
    server = start(jackfield_server)
    found = scored(server, "Count", "one two three", -0.1, max_tokens=3)
    assert found["factors"]["cut_off"] == 1
    assert found["factors"]["ending"] == -0.3


def test_requests_that_do_not_ask_get_nothing_but_are_scored(jackfield_server):
    server = start(jackfield_server)
    server.says("Lima", logprob=-0.01)
    assert server.chat("Which city?").extension == {}
    (found,) = server.record("completed").data["confidence"]
    assert found["confidence"]["score"] > 0.8


def test_an_empty_answer_breaks_nothing(jackfield_server):
    server = start(jackfield_server)
    server.says("")
    assert server.chat("Say nothing", jackfield=True).status == 200


def test_the_metrics_have_a_histogram_by_model(jackfield_server):
    server = start(jackfield_server)
    scored(server, "Which city?", "Lima", -0.01)
    scored(server, "Which city?", "Lima", -4)
    server.request("POST", "/v1/chat/completions", {"model": "other", "messages": []})
    lines = [line for line in server.get("/metrics").text.splitlines() if line.startswith("jackfield_confidence_score")]
    assert f'jackfield_confidence_score_count{{model_name="{MODEL}"}} 2.0' in lines
    assert f'jackfield_confidence_score_bucket{{le="0.1",model_name="{MODEL}"}} 1.0' in lines
    assert not [line for line in lines if "other" in line]


def test_low_confidence_is_an_event_without_text(jackfield_server):
    server = start(jackfield_server, event_below=0.5)
    scored(server, "Secret question?", "Secret answer", -4)
    event = server.event("low_confidence")
    assert (event.level, event.model, event.request_id) == ("warning", MODEL, server.record("completed").request.id)
    assert event.data["score"] < 0.5
    assert "ecret" not in str(event)


@pytest.mark.parametrize(("below", "logprob"), [(0.0, -15), (0.5, -0.01)])
def test_no_event_at_or_above_the_threshold(jackfield_server, below, logprob):
    server = start(jackfield_server, event_below=below)
    scored(server, "Which city?", "Lima", logprob)
    server.event("completed")
    assert not [event for event in server.events if event.kind == "low_confidence"]


def test_labels_begin_where_the_settings_say(jackfield_server):
    server = start(jackfield_server, high=1.0, low=0.95)
    assert scored(server, "Which city?", "Lima", -0.01)["label"] == "low"


@pytest.mark.parametrize("settings", [{"low": 0.9, "high": 0.5}, {"high": 1.5}, {"unknown": 1}])
def test_settings_that_are_wrong_are_refused(jackfield_server, settings):
    with pytest.raises(Exception, match="confidence"):
        start(jackfield_server, **settings)


def test_calibrated_weights_are_taken_up_at_the_start(jackfield_server, tmp_path):
    quality = Quality(auroc=0.9, calibration_error=0.1, brier=0.1, log_loss=0.3)
    calibration = Calibration(
        model=MODEL,
        fitted="2026-01-01T00:00:00Z",
        answers=100,
        right=50,
        intercept=0.0,
        slopes=dict.fromkeys(NAMES, 0.0),
        before=quality,
        after=quality,
    )
    Store(tmp_path / "jackfield-data" / "plugins" / "confidence").save(calibration)
    assert scored(start(jackfield_server), "Which city?", "Lima", -0.01)["score"] == 0.5


def test_a_model_that_the_default_is_not_for_is_warned_about(jackfield_server, caplog):
    start(jackfield_server)
    assert "fitted to the starter model" in caplog.text


def test_what_the_answer_carries_can_be_graded_as_it_is(jackfield_server):
    found = scored(start(jackfield_server), "Which city?", "Lima", -0.5)
    line = {"model": MODEL, "factors": found["factors"], "correct": True}
    assert set(json.loads(json.dumps(line))["factors"]) == set(NAMES)
