// What a program with the official Node SDK gets from a server; prints it as JSON for test_node_sdk.py.
// Usage: node chat.mjs BASE_URL MODEL

import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
      required: ["city"],
    },
  },
};

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function failure(promise) {
  try {
    return { answered: await promise };
  } catch (error) {
    const { status, code, param, type, message } = error;
    return { kind: error.constructor.name, status, code, param, type, message };
  }
}

const create = (fields) => client.chat.completions.create({ model, messages, temperature: 0, ...fields });

const result = {
  chat: await create({}),
  stream: await collect(await create({ stream: true, stream_options: { include_usage: true } })),
  // The SDK's own way to put a stream together.
  final: await client.chat.completions.stream({ model, messages, temperature: 0 }).finalChatCompletion(),
  tool: await create({ tools: [tool], tool_choice: "required", max_tokens: 60 }),
  completion: await client.completions.create({ model, prompt: "The capital of France is", max_tokens: 1, temperature: 0 }),
  models: await collect(await client.models.list()),
  model: await client.models.retrieve(model),
  unknownModel: await failure(create({ model: "gpt-99" })),
  wrongField: await failure(create({ temperature: 3 })),
};
console.log(JSON.stringify(result));
