// The official OpenAI package for Node: chat, stream, tools, JSON schema, logprobs, n, stop, responses, cancel, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const model = process.env.MODEL;
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });
const base = { model, messages, temperature: 0, max_tokens: 16 };

const whole = await client.chat.completions.create({ ...base, logprobs: true, top_logprobs: 1 });
const answer = whole.choices[0].message.content;
assert.ok(answer);
assert.ok(whole.usage.completion_tokens <= 16);
assert.equal(whole.choices[0].logprobs.content[0].top_logprobs.length, 1);

let text = "";
const stream = await client.chat.completions.create({ ...base, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, answer);

const word = answer.split(" ")[1];
const two = await client.chat.completions.create({ ...base, n: 2, stop: [word] });
assert.equal(two.choices.length, 2);
assert.ok(two.choices.every((choice) => !choice.message.content.includes(word)));

const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false };
const forced = await client.chat.completions.create({
  ...base,
  tools: [{ type: "function", function: { name: "get_weather", parameters } }],
  tool_choice: { type: "function", function: { name: "get_weather" } },
});
assert.ok(["Paris", "Rome"].includes(JSON.parse(forced.choices[0].message.tool_calls[0].function.arguments).city));

const schema = { type: "object", properties: { big: { type: "boolean" } }, required: ["big"], additionalProperties: false };
const shaped = await client.chat.completions.create({
  ...base,
  response_format: { type: "json_schema", json_schema: { name: "answer", schema } },
});
assert.equal(typeof JSON.parse(shaped.choices[0].message.content).big, "boolean");

const response = await client.responses.create({ model, input: "Name a river.", max_output_tokens: 8 });
assert.ok(response.output_text);

const cut = await client.chat.completions.create({ model, messages, max_tokens: 400, stream: true });
for await (const chunk of cut) { assert.ok(chunk.id); cut.controller.abort(); break; }

await assert.rejects(client.chat.completions.create({ model: "other", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model, messages: [] }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ model, messages, max_tokens: 10_000_000 }), /too many/);
await assert.rejects(client.chat.completions.create({ model, messages, colour: 1 }), /Unrecognized request argument/);
console.log("openai for Node passed");
