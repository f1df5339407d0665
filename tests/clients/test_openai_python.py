"""The official Python SDK, as docs/clients.md sets it up; test_openai_sdk.py tries all that it can do."""

from asked import Asked
from desk import Desk
from minds import worker

from jackfield.testing import JackfieldServer

CHAT = Asked("POST", "/v1/chat/completions", 200)
RESPONSES = Asked("POST", "/v1/responses", 200)
TITLE = "OpenAI SDK for Python"

TOOL_LOOP = """
import json

client._strict_response_validation = True
messages = [{"role": "user", "content": "Is it raining in Paris?"}]
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
steps = []
while not steps or steps[-1].choices[0].finish_reason == "tool_calls":
    with client.chat.completions.stream(model="starter", messages=messages, tools=tools) as stream:
        steps.append(stream.get_final_completion())
    message = steps[-1].choices[0].message
    messages.append(message.model_dump(exclude_none=True))
    for call in message.tool_calls or []:
        city = json.loads(call.function.arguments)["city"]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"Rain in {city}."})
print(json.dumps([step.choices[0].message.content for step in steps]))
"""


RESPONSE = """
import json

client._strict_response_validation = True
with client.responses.stream(model="starter", input="Say it again.") as stream:
    kinds = [event.type for event in stream]
    print(json.dumps([stream.get_final_response().output_text, kinds[0], kinds[-1]]))
"""


def test_the_page_says_how_and_responses_are_there_too(server: JackfieldServer, desk: Desk) -> None:
    server.answers(lambda prompt: "It is Paris.")
    output = desk.run(TITLE, "python", RESPONSE)
    assert output.out.startswith("It is Paris.\n"), output
    assert output.last == ["It is Paris.", "response.created", "response.completed"]
    assert desk.asked() == [CHAT, RESPONSES]


def test_a_tool_is_called_and_gives_its_result(server: JackfieldServer, desk: Desk) -> None:
    server.answers(worker(("weather", {"city": "Paris"})))
    assert desk.run(TITLE, "python", TOOL_LOOP).last == ["Step 1.", "Done: Rain in Paris."]
    assert desk.asked() == [CHAT] * 3
